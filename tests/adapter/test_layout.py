"""A layout places every trained number once: without gaps, like layers together, in the order of their numbers."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest

from polyvera.adapter.layout import basis_key, layer_number, layout_of
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError, SpecError

SHAPES = {f"layers.{i}.{name}": (8, out) for i in range(12) for name, out in (("q", 8), ("v", 4))} | {"proj": (6, 10)}
HEAD = {"classifier.weight": (3, 8), "classifier.bias": (3,)}
by_method = pytest.mark.parametrize("method", METHODS)
SHARED = [name for name, row in METHODS.items() if row.shares_basis]
OWN = [name for name in METHODS if name not in SHARED]


def spec(method, **choices):
    return AdapterSpec(method, rank=4, head=("classifier",), **choices)


@by_method
def test_every_trained_number_has_one_place(method):
    layout = layout_of(spec(method), SHAPES, HEAD)
    entries = [entry for stack in layout.stacks for entry in stack.entries]
    assert entries[0].offset == 0 and [stack.key for stack in layout.stacks] == sorted(s.key for s in layout.stacks)
    assert all(one.offset + one.size == other.offset for one, other in pairwise(entries))
    assert layout.num_params == entries[-1].offset + entries[-1].size == sum(stack.size for stack in layout.stacks)
    wanted = {f"{n}.{x}": layout.method.shape(x, 4, *SHAPES[n]) for n in SHAPES for x in layout.method.trained} | HEAD
    assert {key: entry.shape for key, entry in layout.entries.items()} == wanted
    assert layout.num_head_params == sum(map(prod, HEAD.values()))


@by_method
def test_like_layers_are_one_stack_in_the_order_of_their_numbers(method):
    layout = layout_of(spec(method), SHAPES)
    for stack in layout.stacks:
        numbers, is_tied = (
            [layer_number(entry.site) for entry in stack.entries],
            stack.entries[0].letter in layout.method.tied,
        )
        assert numbers == ([-1] if "*" not in stack.key else [0] if is_tied else list(range(12)))
        assert stack.shape == (stack.entries[0].shape if len(numbers) == 1 else (12, *stack.entries[0].shape))
        assert stack.offset == stack.entries[0].offset


@by_method
def test_like_layers_have_a_tied_letter_in_one_place_and_others_apart(method):
    layout = layout_of(spec(method), SHAPES)
    for letter in layout.method.trained:
        places = {site: layout.entries[f"{site}.{letter}"].offset for site in SHAPES}
        for name in "qv":
            own = {places[f"layers.{i}.{name}"] for i in range(12)}
            assert len(own) == (1 if letter in layout.method.tied else 12)
        assert len(set(places.values())) == (3 if letter in layout.method.tied else 25)


def test_layers_of_other_widths_are_apart():
    uneven = {"layers.0.q": (8, 8), "layers.1.q": (8, 6), "layers.2.v": (8, 8)}
    assert list(layout_of(AdapterSpec(rank=2), uneven).patterns) == list(uneven)
    assert [layer_number(n) for n in ("layers.10.q", "3.q", "q2", "a.b7.4")] == [10, 3, -1, 4]


@by_method
def test_a_layout_belongs_to_its_spec_alone(method):
    mine = spec(method)
    layout = layout_of(mine, SHAPES, HEAD)
    layout.check(mine)
    others = [replace(mine, rank=5), replace(mine, head=()), *(spec(name) for name in METHODS if name != method)]
    for other in others:
        with pytest.raises(LayoutError, match="do not belong together"):
            layout.check(other)


@pytest.mark.parametrize("method", SHARED)
def test_the_widest_layer_sets_the_basis_unless_a_wider_one_is_named(method):
    key = basis_key(spec(method), SHAPES)
    assert (key.rank, key.in_max, key.out_max) == (4, 8, 10)
    wider = basis_key(spec(method, in_max=9, out_max=30), SHAPES)
    assert (wider.in_max, wider.out_max) == (9, 30)
    with pytest.raises((LayoutError, SpecError), match="7"):
        basis_key(spec(method, in_max=7), SHAPES)
    assert layout_of(spec(method), SHAPES).key() != layout_of(spec(method, seed=1), SHAPES).key()


@pytest.mark.parametrize("method", OWN)
def test_patterns_name_adapted_layers(method):
    layout = layout_of(spec(method, rank_pattern=(("proj", 2),)), SHAPES)
    assert {site.name: site.rank for site in layout.sites} == dict.fromkeys(SHAPES, 4) | {"proj": 2}
    with pytest.raises(LayoutError, match="nowhere"):
        layout_of(spec(method, rank_pattern=(("nowhere", 2),)), SHAPES)


def test_a_pattern_names_layers_by_their_endings() -> None:
    shapes = {f"layers.{i}.attn.{name}": (6, 6) for i in range(2) for name in ("q", "v", "xq")}
    pattern = (("q", 2), ("layers.1.attn.q", 3), ("attn.v", 5))
    ranks = {
        site.name: site.rank for site in layout_of(AdapterSpec(OWN[0], rank=4, rank_pattern=pattern), shapes).sites
    }
    assert [ranks[name] for name in shapes] == [2, 5, 4, 3, 5, 4]


def test_no_layer_is_no_layout():
    with pytest.raises(LayoutError, match="targets"):
        layout_of(AdapterSpec(), {})


def test_what_changes_no_forward_changes_no_bank():
    one, other = (layout_of(AdapterSpec(rank=2, dropout=p), SHAPES) for p in (0.0, 0.5))
    assert one.key() == other.key()
