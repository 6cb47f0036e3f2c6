"""plan: the figures of the papers, row by row, and what cannot be planned."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod

import pytest

from polyvera.adapter.basis import draw_basis
from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import IDENTITY, METHODS, OWN_WIDTH, WAVES
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError, SpecError
from polyvera.plan import (
    CARDS,
    FULL,
    GIB,
    HEADROOM,
    bytes_text,
    compare,
    cost,
    full_cost,
    plan_rows,
    to_dict,
)

KIB, MIB = 2**10, 2**20


def query_value(num_layers: int, width: int) -> dict[str, tuple[int, int]]:
    return {f"layer.{i}.{name}": (width, width) for i in range(num_layers) for name in ("query", "value")}


ROBERTA_BASE, ROBERTA_LARGE, GPT3 = query_value(12, 768), query_value(24, 1024), query_value(96, 12288)


def llama(num_layers: int, width: int, inner: int) -> dict[str, tuple[int, int]]:
    square = {f"{i}.{n}": (width, width) for i in range(num_layers) for n in "qkvo"}
    wide = {f"{i}.{n}": (width, inner) for i in range(num_layers) for n in ("gate", "up")}
    return {**square, **wide, **{f"{i}.down": (inner, width) for i in range(num_layers)}}


def planned(method: str, rank: int, shapes: dict[str, tuple[int, int]], **choices: object):
    return cost(AdapterSpec(method=method, rank=rank, **choices), shapes, 1)


# --- VeRA (Kopiczko 2023), table 1, by its formulas L (d + r) and 2 L d r at 4 bytes a number -------------------------

TABLE_1 = [
    (ROBERTA_BASE, 1, 36_864, 144 * KIB, 18_456, "72.1 KiB"),
    (ROBERTA_BASE, 16, 589_824, 2.25 * MIB, 18_816, "73.5 KiB"),
    (ROBERTA_BASE, 256, 9_437_184, 36 * MIB, 24_576, "96.0 KiB"),
    (ROBERTA_LARGE, 1, 98_304, 384 * KIB, 49_200, "192 KiB"),
    (ROBERTA_LARGE, 16, 1_572_864, 6 * MIB, 49_920, "195 KiB"),
    (ROBERTA_LARGE, 256, 25_165_824, 96 * MIB, 61_440, "240 KiB"),
    (GPT3, 1, 4_718_592, 18 * MIB, 2_359_488, "9.00 MiB"),
    (GPT3, 16, 75_497_472, 288 * MIB, 2_362_368, "9.01 MiB"),
    (GPT3, 256, 1_207_959_552, 4.5 * GIB, 2_408_448, "9.19 MiB"),
]


@pytest.mark.parametrize(("shapes", "rank", "lora", "lora_bytes", "vera", "vera_text"), TABLE_1)
def test_the_theoretical_table_of_the_vera_paper(shapes, rank, lora, lora_bytes, vera, vera_text):
    of_lora, of_vera = planned("lora", rank, shapes), planned("vera", rank, shapes)
    assert (of_lora.num_params, of_lora.stored_bytes) == (lora, lora_bytes)
    assert (of_vera.num_params, of_vera.stored_bytes) == (vera, 4 * vera)
    assert bytes_text(of_vera.stored_bytes) == vera_text


@pytest.mark.parametrize(
    ("rank", "numbers", "printed", "printed_mb"), [(16, 2_755_584, 2.8, 10.5), (256, 8_699_904, 8.7, 33)]
)
def test_the_printed_gpt3_cells_are_the_formula_and_one_stored_basis(rank, numbers, printed, printed_mb):
    """The paper prints 2.8M / 10.5MB and 8.7M / 33MB there: L (d + r) and the 2 d r of A and B, stored once.

    That is the cost of an adapter whose basis no recipe draws, so that it carries the pair; a drawn pair costs nothing.
    """
    drawn, carrying = planned("vera", rank, GPT3), planned("vera", rank, GPT3, init="given")
    assert drawn.num_params + 2 * 12288 * rank == numbers
    assert carrying.num_params == drawn.num_params
    assert carrying.stored_bytes == 4 * numbers == drawn.stored_bytes + drawn.basis_bytes
    assert round(numbers / 1e6, 1) == printed
    assert carrying.stored_bytes / MIB == pytest.approx(printed_mb, rel=0.01)


def test_lora_on_gpt3_for_a_million_users():
    each = planned("lora", 16, GPT3)
    assert each.stored_bytes == 288 * MIB
    assert 1_000_000 * each.stored_bytes / 2**40 == pytest.approx(275, rel=0.002)


LATER_TABLES = [
    ("vera", 1024, ROBERTA_BASE, 43_008),
    ("vera", 256, ROBERTA_LARGE, 61_440),
    ("vera", 256, ROBERTA_BASE, 24_576),  # ViT-B
    ("lora", 8, ROBERTA_BASE, 294_912),
    ("lora", 8, ROBERTA_LARGE, 786_432),
    ("vera", 1024, query_value(24, 1024), 98_304),  # GPT-2 medium
    ("vera", 1024, query_value(36, 1280), 165_888),  # GPT-2 large
    ("vera", 1024, llama(32, 4096, 11008), 1_589_248),
    ("vera", 256, llama(32, 4096, 11008), 1_417_216),
    ("vera", 1024, llama(40, 5120, 13824), 2_416_640),
    ("lora", 64, llama(32, 4096, 11008), 159_907_840),
    ("lora", 64, llama(40, 5120, 13824), 250_347_520),
]


@pytest.mark.parametrize(("method", "rank", "shapes", "num_params"), LATER_TABLES)
def test_parameter_counts_of_the_later_tables(method, rank, shapes, num_params):
    assert planned(method, rank, shapes).num_params == num_params


def test_a_magnitude_adds_the_out_features_of_each_layer():
    shapes = llama(32, 4096, 11008)
    more = sum(out for _, out in shapes.values())
    assert planned("dvora", 1024, shapes).num_params == planned("vera", 1024, shapes).num_params + more
    for name in METHODS:
        with_m = planned(name, 8, shapes, magnitude=True).num_params
        assert with_m == planned(name, 8, shapes).num_params + (0 if "m" in METHODS[name].factors else more)


# --- one row of the table --------------------------------------------------------------------------------------------


def test_every_frozen_factor_of_the_table_is_counted_once():
    """No row and no magnitude hides a frozen tensor that a model would have to hold."""
    shapes = {"a.0.q": (6, 10), "a.1.q": (6, 10)}
    for name, row in METHODS.items():
        for magnitude in (False, True):
            each = planned(name, 3, shapes, magnitude=magnitude)
            frozen_A = not row.factors["A"].trained
            inits = {row.factors[letter].init for letter in row.made}
            layers = 1 if inits & {*WAVES, IDENTITY} else len(shapes)  # which layers as wide as each other share
            assert each.frozen_bytes == 4 * 3 * layers * sum({"A": 6, "B": 10}[letter] for letter in row.made)
            assert (each.basis_bytes, each.frozen_bytes > 0) == (
                (4 * 3 * (6 + 10), False) if row.shares_basis else (0, bool(row.made))
            )
            assert (each.constant_bytes > 0) == (frozen_A and ("m" in row.factors or magnitude))


def test_int8_stores_a_byte_a_number_and_one_scale_a_tensor_of_a_layer():
    shapes, head = query_value(2, 64), {"classifier.weight": (3, 64), "classifier.bias": (3,)}
    each = cost(AdapterSpec(rank=8, head=("classifier",)), shapes, 1, head=head, stored="int8")
    layout = layout_of(AdapterSpec(rank=8), shapes, head)
    scales = sum(prod(stack.shape[:1]) if "*" in stack.key else 1 for stack in layout.stacks)
    assert scales == 4 * 2 + 2
    assert each.stored_bytes == layout.num_params + 4 * scales
    assert each.head_bytes == 3 * 64 + 3 + 2 * 4
    assert each.adapter_bytes == 4 * (64 + 8) + 8 * 4


def test_a_given_basis_is_stored_and_a_drawn_one_is_not():
    shapes = {"l.0.q": (6, 10), "l.0.v": (6, 4)}
    basis = draw_basis(layout_of(AdapterSpec(rank=3), shapes).basis)
    drawn, given = planned("vera", 3, shapes), planned("vera", 3, shapes, init="given")
    assert given.stored_bytes - drawn.stored_bytes == basis.A.nbytes + basis.B.nbytes


def test_rank_pattern_and_wider_basis_are_priced():
    shapes = {"l.0.q": (6, 10), "l.0.v": (6, 10)}
    patterned = planned("lora", 2, shapes, rank_pattern=(("l.0.v", 4),))
    assert patterned.num_params == (2 + 4) * 16
    assert planned("vera", 2, shapes, in_max=12, out_max=20).basis_bytes == 4 * 2 * (12 + 20)


def test_training_bytes_are_the_sum_of_their_parts():
    for each in compare(ROBERTA_BASE, 125_000_000, base_dtype="float16"):
        kept = each.basis_bytes + each.frozen_bytes + each.constant_bytes
        base = 0 if each.method == FULL else 250_000_000
        assert each.training_bytes == base + 16 * each.num_params + kept


def test_adapters_per_gib_counts_whole_stored_adapters():
    each = planned("vera", 256, ROBERTA_BASE)
    assert each.adapters_per_gib == GIB // (96 * KIB) == 10_922
    assert full_cost(8_030_261_248).adapters_per_gib == 0


def test_a_card_must_keep_its_headroom():
    each = planned("vera", 256, ROBERTA_BASE)
    exact = each.training_bytes / (1 - HEADROOM)
    assert each.fits_in(int(exact) + 1)
    assert not each.fits_in(int(exact) - 2)
    largest = max(CARDS.values())
    assert all(each.fits.values())
    assert not any(full_cost(largest // 8).fits.values())
    assert list(CARDS.values()) == sorted(CARDS.values())


def test_an_8b_model_trains_an_adapter_on_a_24_gb_card_and_itself_on_none_below_180():
    rows = {row.method: row for row in compare(query_value(32, 4096), 8_030_261_248)}
    small = [name for name, row in METHODS.items() if row.rank != OWN_WIDTH]
    assert len(small) < len(METHODS) and all(rows[name].fits["RTX 4090 24 GB"] for name in small)
    assert [card for card, fits in rows[FULL].fits.items() if fits] == ["B200 180 GB"]


# --- all rows --------------------------------------------------------------------------------------------------------


def test_compare_has_every_method_at_its_own_rank_and_the_baseline_last():
    rows = compare(ROBERTA_BASE, 125_000_000)
    assert [row.method for row in rows] == [*METHODS, FULL]
    assert [row.rank for row in rows] == [*(method.rank or 768 for method in METHODS.values()), None]
    assert {row.rank for row in compare(ROBERTA_BASE, 1, rank=7)[:-1]} == {7}
    for row in compare(ROBERTA_BASE, 1, rank=1024)[:-1]:
        assert row.rank == (768 if METHODS[row.method].reads_base else 1024)
    for row in rows[:-1]:
        assert row == cost(AdapterSpec(method=row.method), ROBERTA_BASE, 125_000_000)


def test_full_fine_tuning_is_a_whole_copy_and_sixteen_bytes_a_parameter():
    head = {"classifier.weight": (3, 10)}
    row = compare(ROBERTA_BASE, 1000, head=head, base_dtype="float16", stored="int8")[-1]
    assert (row.num_params, row.stored, row.stored_bytes, row.training_bytes) == (1000, "float16", 2000, 16_000)
    assert (row.num_head_params, row.head_bytes, row.adapter_bytes) == (30, 60, 1940)


def test_plan_rows_are_text_in_human_units():
    rows = {row["method"]: row for row in plan_rows(compare(ROBERTA_BASE, 124_645_632))}
    assert rows["vera"] == {
        "method": "vera",
        "rank": "256",
        "trained": "24,576",
        "stored": "96.0 KiB float32",
        "per GiB": "10,922",
        "slot": "96.0 KiB",
        "basis": "1.50 MiB",
        "training": "240 MiB",
        "trains on": "RTX 4090 24 GB",
    }
    assert rows[FULL]["rank"] == "" and rows[FULL]["stored"] == "238 MiB bfloat16"
    assert plan_rows([full_cost(10**12)])[0]["trains on"] == "no one card listed"


def test_plan_rows_show_the_head_where_one_is_trained():
    head = {"classifier.weight": (3, 768)}
    (row,) = plan_rows([cost(AdapterSpec(head=("classifier",)), ROBERTA_BASE, 10**6, head=head)])
    assert (row["trained"], row["of it head"], row["stored without head"]) == ("26,880", "2,304", "96.0 KiB")


def test_to_dict_is_json_with_every_figure():
    each = planned("vera", 256, ROBERTA_BASE)
    plain = json.loads(json.dumps(to_dict(each)))
    assert plain["num_adapter_params"] == plain["num_params"] == 24_576
    for name in ("stored_bytes", "adapter_bytes", "adapters_per_gib", "training_bytes", "fits", "slot_bytes"):
        assert plain[name] == getattr(each, name)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (10_235, "10.0 KiB"),
        (1_048_000, "1,023 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (3 * 2**30, "3.00 GiB"),
        (5 * 2**50, "5,120 TiB"),
    ],
)
def test_bytes_text(num_bytes, text):
    assert bytes_text(num_bytes) == text


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"base_dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"base_dtype": "int8"}, "base_dtype='int8' must be one of: float32, bfloat16, float16"),
        ({"stored": "int5"}, "did you mean 'int"),
        ({"stored": "float16"}, "stored='float16' must be one of: float32, bfloat16, int8, int4, int3"),
    ],
)
def test_an_unknown_dtype_is_refused(choices, said):
    with pytest.raises(SpecError, match=said):
        cost(AdapterSpec(), ROBERTA_BASE, 1, **choices)


def test_a_head_without_shapes_is_refused():
    with pytest.raises(SpecError, match="head 'classifier'"):
        cost(AdapterSpec(head=("classifier",)), ROBERTA_BASE, 1)
    with pytest.raises(SpecError, match="head 'classifier'"):
        cost(AdapterSpec(head=("classifier",)), ROBERTA_BASE, 1, head={"classifier2.weight": (1,)})


def test_no_layers_no_parameters_and_a_narrow_basis_are_refused():
    with pytest.raises(LayoutError, match="no layer"):
        cost(AdapterSpec(), {}, 1)
    with pytest.raises(SpecError, match="num_base_params=0"):
        cost(AdapterSpec(), ROBERTA_BASE, 0)
    with pytest.raises(LayoutError, match="narrower"):
        cost(AdapterSpec(in_max=8), ROBERTA_BASE, 1)


def test_planning_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from polyvera.plan import compare\n"
        "print(len(compare({'l.0.q': (8, 8)}, 100)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == len(METHODS) + 1


def test_experts_are_counted_for_every_method_that_takes_them():
    shapes = {"layers.0.experts.up": (8, 6, 3), "layers.0.q": (8, 8)}
    rows = compare(shapes, 1000, rank=2)
    assert {row.method for row in rows[:-1]} == {name for name, row in METHODS.items() if not row.reads_base}
    for row in rows[:-1]:
        spec = AdapterSpec(row.method, rank=2)
        assert row.num_params == layout_of(spec, shapes).num_params
