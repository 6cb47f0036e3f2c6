import copy

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import add_bank, banks_of, eject, extract, inject, load
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.errors import FingerprintError, LayoutError, SpecError, TargetError


def test_an_unknown_target_names_the_nearest(small_llama: nn.Module) -> None:
    with pytest.raises(
        TargetError,
        match=r"targets='q_prj' matches none of the 22 linear layers of LlamaForCausalLM; did you mean 'q_proj'\?",
    ):
        find_sites(small_llama, AdapterSpec(targets=("q_prj",)))


@pytest.mark.parametrize(
    "choices, count",
    [
        ({}, 6),
        ({"targets": "all-linear"}, 21),
        ({"targets": ("q_proj", "mlp.up_proj")}, 6),
        ({"targets": "q_proj"}, 3),
        ({"targets": r".*layers\.[01]\..*_proj"}, 14),
        ({"targets": ("model.layers.1.self_attn.k_proj",)}, 1),
        ({"targets": "all-linear", "exclude": ("mlp.down_proj", "k_proj")}, 15),
        ({"targets": ("lm_head",)}, 1),
    ],
)
def test_targets_find_their_layers(small_llama: nn.Module, choices: dict, count: int) -> None:
    assert len(find_sites(small_llama, AdapterSpec(**choices))) == count


@pytest.mark.parametrize(
    "choices, said",
    [
        ({"targets": "x.*y"}, "fully matches none"),
        ({"targets": "q_proj("}, "not a valid regular expression"),
        ({"exclude": ("nothing",)}, "exclude='nothing' matches none"),
        ({"targets": ("q_proj",), "exclude": ("q_proj",)}, "leaves no layer"),
    ],
)
def test_targets_that_find_nothing_are_refused(small_llama: nn.Module, choices: dict, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        find_sites(small_llama, AdapterSpec(**choices))


def test_the_default_targets_are_queries_and_values(model: nn.Module) -> None:
    names = {name.rpartition(".")[2] for name in find_sites(model, AdapterSpec())}
    assert names in ({"q_proj", "v_proj"}, {"query", "value"}, {"c_attn"})


def test_all_linear_leaves_the_head_and_the_output_out(small_bert: nn.Module, small_llama: nn.Module) -> None:
    assert "classifier" not in find_sites(small_bert, AdapterSpec(targets="all-linear"))
    assert "lm_head" not in find_sites(small_llama, AdapterSpec(targets="all-linear"))


def test_sites_are_found_again_in_an_adapted_model(small_llama: nn.Module) -> None:
    spec = AdapterSpec(targets="all-linear")
    bare = find_sites(small_llama, spec)
    inject(small_llama, spec)
    assert find_sites(small_llama, spec) == bare


@pytest.mark.parametrize("name", METHODS)
def test_extract_and_load_give_the_same_model_in_another_process_sense(
    model: nn.Module, ids: Tensor, scramble, name: str
) -> None:
    other, spec = copy.deepcopy(model), AdapterSpec(name, rank=3)
    bank = inject(model, spec)
    scramble(bank)
    adapter = extract(bank, 1, model, {"accuracy": 0.5})
    load(other, adapter)
    with torch.no_grad():
        assert torch.equal(other(ids).logits, model(ids).logits)
    assert not any(p.requires_grad for p in other.parameters() if p in {*banks_of(other)[0].layers})
    assert adapter.scores == {"accuracy": 0.5} and adapter.created and adapter.base == fingerprint(other)
    bank._write(0, torch.zeros_like(adapter.flat))
    assert adapter.flat.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_eject_gives_the_very_modules_back(model: nn.Module, name: str) -> None:
    before = dict(model.named_modules())
    inject(model, AdapterSpec(name, rank=3, targets="all-linear"))
    inject(model, AdapterSpec(name, rank=2))
    assert dict(eject(model).named_modules()) == before and not banks_of(model)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_starts_the_same_adapter_whatever_the_order(small_llama: nn.Module, name: str) -> None:
    widths = {"in_max": 32, "out_max": 32} if METHODS[name].shares_basis else {}
    few = AdapterSpec(name, rank=3, targets=("v_proj",), **widths)
    many = AdapterSpec(name, rank=3, targets=("v_proj", "q_proj"), **widths)
    torch.manual_seed(1)
    first = inject(copy.deepcopy(small_llama), few).layers
    torch.manual_seed(2)
    second = inject(copy.deepcopy(small_llama), many).layers
    for site, layer in first.items():
        for key, value in layer.matrices(0).items():
            assert torch.equal(value, second[site].matrices(0)[key]), (site, key)


def test_another_base_is_refused_and_may_be_forced(small_llama: nn.Module, ids: Tensor, scramble) -> None:
    spec = AdapterSpec()
    bank = inject(small_llama, spec)
    scramble(bank)
    adapter = extract(bank, 1, small_llama)
    other = eject(small_llama)
    other.model.layers[1].mlp.up_proj.weight.data.mul_(1.1)
    with pytest.raises(FingerprintError, match="trained on the base model .* check_base=False"):
        load(other, adapter)
    assert not banks_of(other)
    assert load(other, adapter, check_base=False) == [1]


def test_the_fingerprint_is_of_the_base_alone_and_of_any_precision(
    small_llama: nn.Module, small_bert: nn.Module, scramble
) -> None:
    name = fingerprint(small_llama)
    scramble(inject(small_llama, AdapterSpec()))
    assert fingerprint(small_llama) == name
    assert fingerprint(eject(small_llama).bfloat16()) == name
    bert = fingerprint(small_bert)
    small_bert.classifier.weight.data.add_(1)
    assert fingerprint(small_bert) == bert != name
    small_bert.bert.embeddings.word_embeddings.weight.data.mul_(2)
    assert fingerprint(small_bert) != bert


def test_layers_that_are_missing_or_of_another_width_are_refused(small_llama: nn.Module, model: nn.Module) -> None:
    spec = AdapterSpec(rank=3, targets=("up_proj",))
    adapter = extract(inject(small_llama, spec), 1)
    wide = copy.deepcopy(eject(small_llama))
    wide.model.layers[0].mlp.up_proj = nn.Linear(32, 64)
    with pytest.raises(LayoutError, match=r"up_proj is \(32, 64\) .* made for \(32, 48\)"):
        load(wide, adapter)
    del small_llama.model.layers[2]
    with pytest.raises(LayoutError, match=r"layers\.2\.mlp\.up_proj', which LlamaForCausalLM lacks; did you mean"):
        load(small_llama, adapter)


def test_a_head_that_is_no_module_names_the_nearest(small_bert: nn.Module) -> None:
    with pytest.raises(TargetError, match=r"head='clasifier'.*did you mean 'classifier'"):
        inject(small_bert, AdapterSpec(head=("clasifier",)))


def test_a_head_inside_another_module_is_refused(small_bert: nn.Module) -> None:
    with pytest.raises(TargetError, match=r"head='bert.embeddings' is inside .*: bert, dropout, classifier"):
        inject(small_bert, AdapterSpec(head=("bert.embeddings",)))
    assert not banks_of(small_bert)


def test_heads_of_other_classes_stand_side_by_side_where_that_is_asked_for(small_bert: nn.Module, scramble) -> None:
    ids, spec = torch.arange(24).view(4, 6), AdapterSpec(rank=2, head=("classifier",))
    alone, slots, layouts = {}, {}, {}
    for classes in (2, 3, 5):
        other = copy.deepcopy(small_bert)
        other.classifier, other.config.num_labels = nn.Linear(32, classes), classes
        bank = inject(other, spec)
        scramble(bank, seed=classes)
        with torch.no_grad():
            alone[classes] = other(ids).logits
        layouts[classes] = extract(bank, bank.first)
    with pytest.raises(LayoutError, match=r"has classifier.bias of shape \(2,\); .* has shape \(3,\)"):
        load(small_bert, layouts[2])
    for classes, adapter in layouts.items():
        bank = add_bank(small_bert, adapter.layout, 1, adapter.basis(), any_classes=True)
        slots[classes] = bank.first
        bank.put(bank.first, adapter)
    with route([slots[2], 0, slots[5], slots[3]]), torch.no_grad():
        mixed = small_bert(ids).logits
    for row, classes in ((0, 2), (2, 5), (3, 3)):
        torch.testing.assert_close(mixed[row, :classes], alone[classes][row])
        assert torch.equal(mixed[row, classes:], torch.full((5 - classes,), -torch.inf))
    with route(0), torch.no_grad():
        torch.testing.assert_close(mixed[1, :3], small_bert(ids).logits[1])


def test_extract_takes_no_spec(small_llama: nn.Module) -> None:
    bank = inject(small_llama, AdapterSpec(rank=2))
    with pytest.raises(SpecError, match="the bank keeps the one"):
        extract(bank, bank.first, AdapterSpec("lora", rank=8))  # type: ignore[arg-type]
