"""The laws of adapted layers, for experts: every row of the table, and either way round of the weights."""

import copy

import pytest
import torch
from moe_models import ALL_MODELS, make_moe
from transformers import JetMoeConfig, JetMoeForCausalLM

from polyvera.adapter.adapted_experts import AdaptedExperts
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.merge import Switch, merge
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import Route, route
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.errors import LayoutError, TargetError

OWN = [name for name, row in METHODS.items() if not row.reads_base]
OF_BASE = [name for name, row in METHODS.items() if row.reads_base]
SPECS = [AdapterSpec(name, rank=4, targets="experts", magnitude=m) for name in OWN for m in (False, True)]
every = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.method + "+m" * s.magnitude)
IDS = torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(5))
SLOTS = [2, 0, 3, 1]


@pytest.fixture(params=ALL_MODELS)
def moe(request):
    return make_moe(request.param)


def logits(model, slots=None, ids=IDS):
    if slots is None:
        return model(ids).logits
    with route(slots):
        return model(ids).logits


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@every
def test_fresh_is_the_identity_and_a_mixed_batch_is_each_row_alone(moe, spec, scramble):
    with torch.no_grad():
        bare = logits(moe)
        bank = inject(moe, spec, 3)
        torch.testing.assert_close(logits(moe, [1, 2, 3, 1]), bare)
        scramble(bank)
        assert torch.equal(logits(moe, 0), bare), "no slot is the base itself"
        mixed, alone = logits(moe, SLOTS), [logits(moe, slot) for slot in range(4)]
        on_device = logits(moe, Route.on_device(torch.tensor(SLOTS)))
        packed = logits(moe, [[1] * 4 + [2] * 5], IDS[:1])
        halves = [logits(moe, slot, IDS[:1]) for slot in (1, 2)]
    for row, slot in enumerate(SLOTS):
        torch.testing.assert_close(mixed[row], alone[slot][row], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(on_device, mixed, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed[:, :4], halves[0][:, :4], atol=1e-5, rtol=1e-4)
    assert min(float((alone[i] - alone[j]).abs().max()) for i in range(4) for j in range(i)) > 1e-4
    eject(moe)
    assert not any(isinstance(m, AdaptedExperts) for m in moe.modules()) and torch.equal(logits(moe), bare)


@every
def test_gradients_of_a_mixed_batch_are_those_of_each_row_alone(moe, spec, scramble):
    bank = inject(moe, spec, 3)
    scramble(bank)
    weights = torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(0))
    (logits(moe, SLOTS) * weights).sum().backward()
    mixed = gradients(moe)
    for row, slot in enumerate(SLOTS):
        if slot:
            (logits(moe, slot, IDS[row : row + 1]) * weights[row : row + 1]).sum().backward()
    alone = gradients(moe)
    assert set(mixed) == set(alone) and mixed
    for name, grad in mixed.items():
        torch.testing.assert_close(grad, alone[name], atol=1e-4, rtol=1e-3)


@every
def test_merged_and_loaded_models_give_the_adapted_logits(moe, spec, scramble):
    bank = inject(moe, spec, 2)
    scramble(bank)
    adapter = extract(bank, 2, moe)
    with torch.no_grad():
        expected = logits(moe, 2)
        eject(moe)
        [slot] = load(moe, adapter)
        torch.testing.assert_close(logits(moe, slot), expected)
        whole = copy.deepcopy(moe)
        torch.testing.assert_close(logits(merge(whole, slot)), expected, atol=1e-5, rtol=1e-4)
        bare = logits(eject(moe))
        switch = Switch(moe)
        torch.testing.assert_close(logits(switch.to(adapter)), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(logits(switch.restore()), bare)


def test_an_expert_costs_two_short_vectors(moe):
    bank = inject(moe, AdapterSpec("vera", rank=4, targets="experts"))
    sites = bank.layout.sites
    assert bank.layout.num_params == sum(s.num_experts * (s.rank + s.out_features) for s in sites)
    key = bank.layout.basis
    assert key is not None and key.num_params == 4 * (key.in_max + key.out_max)


@pytest.mark.parametrize("method", OF_BASE)
def test_a_basis_of_the_weights_is_refused(moe, method):
    with pytest.raises(LayoutError, match="a stack of experts, which have no singular vectors in common"):
        inject(moe, AdapterSpec(method, rank=4, targets="experts"))


def test_experts_are_a_word_beside_others_and_have_names(moe):
    both = find_sites(moe, AdapterSpec(targets=("experts", "default")))
    assert {n.rpartition(".")[2] for n in both} == {"gate_up_proj", "down_proj", "q_proj", "v_proj"}
    assert "model.layers.1.mlp.experts.down_proj" in find_sites(moe, AdapterSpec(targets="down_proj"))
    assert not [n for n in find_sites(moe, AdapterSpec(targets="all-linear")) if "experts" in n]


def test_a_model_without_experts_has_none_to_adapt(small_llama):
    with pytest.raises(TargetError, match="LlamaForCausalLM has no fused experts"):
        find_sites(small_llama, AdapterSpec(targets="experts"))


def test_experts_with_a_forward_of_their_own_are_refused_by_name():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        model = JetMoeForCausalLM(JetMoeConfig(**sizes, vocab_size=32, num_local_experts=2, kv_channels=8))
    with pytest.raises(TargetError, match="JetMoeForCausalLM has no fused experts"):
        find_sites(model, AdapterSpec(targets="experts"))
