"""target_modules names the adapted layers and nothing else of the model, for PEFT's own matching."""

import pytest
import torch
from peft_oracle import here, in_peft, logits, trained
from torch import nn

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.store.peft import export_peft
from polyvera.store.peft.targets import named_by, target_names

pytestmark = pytest.mark.filterwarnings("ignore")


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)


@pytest.fixture
def seeing_llama(small_llama):
    """A model with another module of the same ending, which PEFT cannot adapt."""
    small_llama.model.vision = nn.Module()
    small_llama.model.vision.q_proj = Wrapped()
    return small_llama


def test_an_ending_is_written_only_where_it_names_nothing_else(small_llama):
    spec = AdapterSpec(rank=4, targets=("q_proj",))
    adapter = trained(small_llama, spec)
    assert target_names(adapter, small_llama) == ["q_proj"]
    assert target_names(adapter, None) == sorted(adapter.layout.site_names)
    narrowed = trained(small_llama, AdapterSpec(rank=4, targets=("q_proj",), exclude=("layers.0.self_attn.q_proj",)))
    assert target_names(narrowed, small_llama) == sorted(narrowed.layout.site_names)


def test_other_modules_make_full_names_of_endings(seeing_llama):
    adapter = trained(seeing_llama, AdapterSpec(rank=4, targets=("q_proj",)))
    assert target_names(adapter, seeing_llama) == sorted(adapter.layout.site_names)
    seeing_llama.other = nn.Module()
    seeing_llama.other.model = seeing_llama.model.__class__(seeing_llama.config)
    found = target_names(adapter, seeing_llama)
    assert isinstance(found, str) and found.count("|") == len(adapter.layout.sites) - 1


@pytest.mark.parametrize("as_lora", [False, True])
@pytest.mark.parametrize("at_hand", [False, True])
@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.name)
def test_peft_adapts_the_same_layers(row, at_hand, as_lora, seeing_llama, tmp_path, ids):
    if as_lora and "m" in row.factors:
        pytest.skip("a magnitude is not folded")
    adapter = trained(seeing_llama, AdapterSpec(row.name, 4, ("q_proj",)))
    model = seeing_llama if at_hand else None
    theirs = in_peft(seeing_llama, export_peft(adapter, tmp_path / "a", as_lora=as_lora, model=model))
    ours, _ = here(seeing_llama, adapter)
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), rtol=1e-5, atol=1e-5)
    assert set(theirs.base_model.targeted_module_names) == set(adapter.layout.site_names)


def test_names_match_as_endings():
    assert named_by(["q"], ["a.q", "q", "a.xq", "q.b"]) == {"a.q", "q"}
