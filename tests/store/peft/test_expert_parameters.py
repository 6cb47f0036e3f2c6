"""PEFT's target_parameters, in and out, against PEFT's own ParamWrapper."""

import copy
import json

import pytest
import torch
from moe_models import MODELS, make_moe
from peft import LoraConfig, PeftModel
from peft_oracle import saved_by_peft, trained
from safetensors.torch import load_file

from polyvera.adapter.inject import eject, load
from polyvera.adapter.merge import merge
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SpecError
from polyvera.store.peft import export_peft, import_peft
from polyvera.store.peft.expert_parameters import kept, kept_shape, unkept, wrapped_name

IDS = torch.randint(0, 64, (3, 7), generator=torch.Generator().manual_seed(5))
PARAMETERS = (["experts.gate_up_proj", "experts.down_proj"], ["experts.down_proj"])


@pytest.fixture(params=MODELS)
def moe(request):
    return make_moe(request.param)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def adapted(model, adapter):
    [slot] = load(model, adapter)
    try:
        with route(slot):
            return logits(model)
    finally:
        eject(model)


def merged(model, adapter):
    whole = copy.deepcopy(model)
    [slot] = load(whole, adapter)
    return dict(merge(whole, slot).named_parameters())


@pytest.mark.parametrize("parameters", PARAMETERS, ids=len)
def test_a_folder_of_pefts_comes_in_and_goes_out_bit_for_bit(moe, parameters, tmp_path):
    config = LoraConfig(r=3, lora_alpha=7, use_rslora=True, target_modules=["q_proj"], target_parameters=parameters)
    theirs = saved_by_peft(tmp_path / "theirs", moe, config)
    adapter = import_peft(theirs, moe)
    assert set(adapter.spec.targets) == {"q_proj", *parameters}
    peft = PeftModel.from_pretrained(copy.deepcopy(moe), str(theirs)).eval()
    torch.testing.assert_close(adapted(moe, adapter), logits(peft), atol=1e-5, rtol=1e-4)
    ours = export_peft(adapter, tmp_path / "ours", model=moe)
    found, expected = (load_file(f / "adapter_model.safetensors") for f in (ours, theirs))
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in found)
    whole = merged(moe, adapter)
    for name, weight in peft.merge_and_unload().named_parameters():
        assert torch.equal(weight, whole[name]), name


@pytest.mark.parametrize("spec", [AdapterSpec("lora", 4), AdapterSpec("vera", 4), AdapterSpec("lora-fa", 4)], ids=str)
def test_what_is_written_gives_the_same_logits_in_peft(moe, spec, tmp_path):
    adapter = trained(moe, AdapterSpec(spec.method, 4, ("experts", "default"), dropout=0.1))
    folder = export_peft(adapter, tmp_path / "out", model=moe)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert len(config["target_parameters"]) == 4 and config["lora_dropout"] == 0.0
    peft = PeftModel.from_pretrained(copy.deepcopy(moe), str(folder)).eval()
    expected = adapted(moe, adapter)
    torch.testing.assert_close(logits(peft), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(adapted(moe, import_peft(folder, moe)), expected, atol=1e-5, rtol=1e-4)


def test_a_magnitude_of_experts_is_refused(moe, tmp_path):
    with pytest.raises(SpecError, match=r"target_parameters knows no magnitude.*experts\.gate_up_proj"):
        export_peft(trained(moe, AdapterSpec("dora", 4, "experts")), tmp_path / "out", model=moe)


def test_parameters_that_are_no_experts_are_refused(moe, tmp_path):
    config = LoraConfig(r=3, target_modules=[], target_parameters=["q_proj.weight"])
    with pytest.raises(SpecError, match="neither layers nor fused experts"):
        import_peft(saved_by_peft(tmp_path / "theirs", moe, config), moe)


def test_factors_are_kept_in_two_matrices_and_come_back():
    for letter, shape in (("A", (4, 3, 5)), ("B", (4, 7, 3))):
        factor = torch.arange(torch.Size(shape).numel()).reshape(shape)
        stored = kept(letter, factor)
        assert tuple(stored.shape) == kept_shape(letter, shape) == {"A": (12, 5), "B": (7, 12)}[letter]
        assert torch.equal(unkept(letter, stored, shape), factor)
    both = {"m.experts.gate_up_proj", "m.experts.down_proj"}
    assert wrapped_name("m.experts.gate_up_proj", both) == "m.experts.base_layer"
    assert wrapped_name("m.experts.down_proj", both) == "m.experts"
    assert wrapped_name("m.experts.gate_up_proj", {"m.experts.gate_up_proj"}) == "m.experts"


def test_experts_that_peft_turns_are_refused_both_ways(tmp_path):
    llama4 = make_moe("llama4")
    config = LoraConfig(r=3, target_modules=[], target_parameters=["experts.down_proj"])
    with pytest.raises(SpecError, match="cannot be imported"):
        import_peft(saved_by_peft(tmp_path / "theirs", llama4, config), llama4)
    with pytest.raises(SpecError, match="takes the experts of a llama4_text the other way round"):
        export_peft(trained(llama4, AdapterSpec("lora", 4, "experts")), tmp_path / "out", model=llama4)
