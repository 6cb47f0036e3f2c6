"""Names that wrappers and other savers changed lead back to PEFT's own, and nothing is guessed."""

import pytest
import torch
import transformers as T
from peft_oracle import KINDS, here, in_peft, logits, saved_by_peft
from safetensors.torch import load_file, save_file

from polyvera.errors import FormatError
from polyvera.store.peft import import_peft
from polyvera.store.peft.tensor_names import adapter_names, backbone_prefix, canonical, found_names, own_name

pytestmark = pytest.mark.filterwarnings("ignore")
START, WEIGHTS = "base_model.model.", "adapter_model.safetensors"
TARGETS = ["q_proj", "v_proj"]
RENAMES = {
    "ddp": lambda k: "module." + k,
    "compiled": lambda k: k.replace(START, f"{START}_orig_mod."),
    "twice": lambda k: k.replace(START, START + START),
    "bare": lambda k: k.removeprefix(START),
    "checkpointed": lambda k: k.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "raw": lambda k: k.replace(".weight", ".default.weight"),
    "fsdp-raw": lambda k: "_fsdp_wrapped_module." + k.replace(".weight", ".mine.weight"),
}


def renamed(folder, rename):
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(k): t for k, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora", "vera"])
@pytest.mark.parametrize("name", RENAMES)
def test_a_rename_is_undone(name, kind, small_llama, tmp_path, ids):
    folder = saved_by_peft(tmp_path / "a", small_llama, KINDS[kind](TARGETS))
    theirs = logits(in_peft(small_llama, folder), ids)
    model, _ = here(small_llama, import_peft(renamed(folder, RENAMES[name]), small_llama))
    assert torch.equal(logits(model, ids), theirs)


def llava():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": 100, **sizes}
    vision = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **sizes}
    torch.manual_seed(0)
    config = T.LlavaConfig(text_config=text, vision_config=vision, image_token_id=95)
    return T.LlavaForConditionalGeneration(config).eval()


def test_names_of_an_older_transformers_are_todays(tmp_path, ids):
    base = llava()
    folder = saved_by_peft(tmp_path / "a", base, KINDS["lora"](r".*language_model.*\.(q_proj|v_proj)"))
    theirs = logits(in_peft(base, folder), ids)
    old = renamed(folder, lambda k: k.replace("model.language_model.", "language_model.model."))
    model, _ = here(base, import_peft(old, base))
    assert torch.equal(logits(model, ids), theirs) and not torch.equal(logits(base, ids), theirs)


def test_a_raw_state_dict_may_hold_the_base_too(small_bert, tmp_path, ids):
    folder = saved_by_peft(tmp_path / "a", small_bert, KINDS["lora"](["query"]), task="SEQ_CLS")
    theirs = logits(in_peft(small_bert, folder), ids)
    tensors = {START + k: t.clone() for k, t in small_bert.state_dict().items() if not k.startswith("classifier")}
    for key, tensor in load_file(folder / WEIGHTS).items():
        is_head = "classifier" in key
        tensors[key.replace("classifier.", "classifier.modules_to_save.default.") if is_head else key] = tensor
        if is_head:
            tensors[key.replace("classifier.", "classifier.original_module.")] = tensor + 1
    save_file(tensors, folder / WEIGHTS)
    model, _ = here(small_bert, import_peft(folder, small_bert))
    assert torch.equal(logits(model, ids), theirs)


def test_what_leaves_doubt_is_refused(small_llama):
    wanted = [f"{START}q_proj.lora_A.weight", f"{START}q_proj.lora_B.weight"]
    two = [f"{k.removesuffix('.weight')}.{name}.weight" for k in wanted for name in ("a", "b")]
    with pytest.raises(FormatError, match="holds 2 adapters: a, b"):
        found_names(wanted, two, small_llama)
    with pytest.raises(FormatError, match="under two names"):
        found_names(wanted, ["q_proj.lora_A.weight", f"module.{wanted[0]}", wanted[1]], small_llama)
    with pytest.raises(FormatError, match=r"1 of 2 tensors are missing.*q_proj\.lora_B\.weight.*holds 'other'"):
        found_names(wanted, [wanted[0], "other"], small_llama)


def test_the_parts_of_a_name():
    assert canonical("base_model.vera_A") == "vera_A"
    assert canonical("module.base_model.model.x.lora_B.bias") == "x.lora_B.bias"
    assert canonical("base_model.model.score.modules_to_save.weight") == "score.weight"
    assert own_name("base_model.model.x.base_layer.weight") == "x.weight"
    assert adapter_names(["x.lora_A.weight", "x.lora_E", "y.lora_A.mine.weight"]) == {"mine"}


def test_names_of_a_bare_backbone_are_recognized(small_bert):
    bare = "encoder.layer.0.attention.self.query.lora_A.weight"
    whole = f"bert.{bare}"
    assert backbone_prefix([START + bare], small_bert) == "bert."
    assert backbone_prefix([START + whole], small_bert) == backbone_prefix([whole], small_bert.bert) == ""
