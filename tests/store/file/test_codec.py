"""Laws of the codec: decode undoes encode bit for bit, and every other bytes are refused with FormatError."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_adapters import SMOLLM2, alike, drawn, with_given_basis, with_value
from forged_files import forged, header_of
from safetensors.torch import load

from polyvera.adapter.basis import BASES
from polyvera.adapter.layout import Site
from polyvera.adapter.method import METHODS
from polyvera.errors import FormatError, LayoutError
from polyvera.store.file.codec import decode, encode, read_header
from polyvera.store.file.layer_pattern import fold, unfold
from polyvera.store.file.packed_bits import unpack_naive
from polyvera.store.file.stored_dtype import STORED_DTYPES

HEAD = {"score.weight": (2, 8), "score.bias": (2,), "score.temperature": ()}
SHARED = [name for name, row in METHODS.items() if row.shares_basis]
OWN = [name for name, row in METHODS.items() if not row.shares_basis]
each_method = pytest.mark.parametrize("method", METHODS)
each_dtype = pytest.mark.parametrize("dtype", STORED_DTYPES)
FIRST = next(iter(METHODS))


# --- there and back ---------------------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("choices", [{}, {"head": HEAD}, {"magnitude": True}, {"seed": 7, "dropout": 0.1}], ids=str)
def test_float32_keeps_every_bit(method, choices):
    adapter = drawn(method, **choices)
    assert alike(decode(encode(adapter)), adapter)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.reads_base])
@each_dtype
def test_stacks_of_experts_come_back(method, dtype):
    adapter = drawn(method, {f"layers.{i}.experts.up": (6, 8, 3) for i in range(2)} | {"layers.0.q": (8, 8)})
    data = encode(adapter, dtype)
    back = decode(data)
    assert back.layout.key() == adapter.layout.key() and header_of(data)[1]["format"] == 3
    assert dtype != "float32" or alike(back, adapter)


@pytest.mark.parametrize(("lr", "prompt_form"), [(0.12, "chat"), (3e-5, "plain"), (None, "")])
def test_the_rate_and_the_form_of_prompts_come_back(lr, prompt_form):
    back = decode(encode(replace(drawn(FIRST), lr=lr, prompt_form=prompt_form)))
    assert (back.lr, back.prompt_form) == (lr, prompt_form)
    with pytest.raises(FormatError, match="prompt_form"):
        encode(replace(drawn(FIRST), prompt_form="verse"))


@pytest.mark.parametrize("method", OWN)
def test_ranks_and_alphas_by_layer_come_back(method):
    alphas = {"alpha": 16, "alpha_pattern": (("layers.2.v", 3.5),)} if METHODS[method].takes_alpha else {}
    adapter = drawn(method, rank_pattern=(("layers.1.q", 2),), **alphas)
    assert alike(decode(encode(adapter)), adapter)


@pytest.mark.parametrize("method", SHARED)
@pytest.mark.parametrize("init", BASES)
def test_a_drawn_basis_is_named_and_not_stored(method, init):
    adapter = drawn(method, init=init, in_max=12, out_max=16)
    back = decode(encode(adapter))
    assert alike(back, adapter) and back.basis().sha256 == adapter.basis_sha256
    assert not any(key.startswith("basis.") for key in load(encode(adapter)))


@pytest.mark.parametrize("method", SHARED)
@each_dtype
def test_a_given_basis_is_stored_whole(method, dtype):
    adapter = with_given_basis(drawn(method))
    back = decode(encode(adapter, dtype))
    assert torch.equal(back.basis().A, adapter.given.A) and torch.equal(back.basis().B, adapter.given.B)
    assert back.layout.key() == adapter.layout.key()


@pytest.mark.parametrize("method", SHARED)
def test_layers_on_both_sides_of_the_basis_in_the_file(method):
    adapter = with_given_basis(drawn(method, {"a.proj": (8, 8), "z.proj": (8, 8)}))
    assert alike(decode(encode(adapter)), adapter)


@pytest.mark.parametrize("method", SHARED)
def test_another_given_basis_is_refused(method):
    adapter = with_given_basis(drawn(method, {"z.proj": (8, 8)}))
    data = forged(encode(adapter), section=lambda tail: b"\x01" + tail[1:])
    with pytest.raises(FormatError, match="basis"):
        decode(data)


@each_method
def test_the_data_section_is_the_flat_vector(method):
    adapter = drawn(method, head=HEAD)
    data = encode(adapter)
    assert data[8 + int.from_bytes(data[:8], "little") :] == adapter.flat.numpy().astype("<f4").tobytes()


@each_method
@each_dtype
def test_safetensors_reads_the_stacks(method, dtype):
    adapter = drawn(method, head=HEAD)
    stored = load(encode(adapter, dtype))
    values = decode(encode(adapter, dtype)).tensors
    for stack in adapter.layout.stacks:
        packed, bits = stored[stack.key].reshape(len(stack.entries), -1), STORED_DTYPES[dtype].bits
        rows = torch.empty(len(packed), stack.entries[0].size)
        unpack_naive(packed.numpy(), bits, rows.numpy()) if bits < 8 else rows.copy_(packed)
        rows = rows * stored[f"{stack.key}.scale"].float()[:, None] if f"{stack.key}.scale" in stored else rows
        for entry, row in zip(stack.entries, rows, strict=True):
            assert torch.equal(values[entry.key], row.view(entry.shape))


@each_dtype
def test_the_same_adapter_is_the_same_bytes(dtype):
    assert encode(drawn(FIRST), dtype) == encode(drawn(FIRST), dtype)


@each_dtype
@pytest.mark.parametrize(
    "kind", [bytes, bytearray, lambda b: memoryview(bytearray(b"xyz") + b)[3:]], ids=["b", "ba", "mv"]
)
def test_any_buffer_is_read(dtype, kind):
    data = encode(drawn(FIRST), dtype)
    assert alike(decode(kind(data)), decode(data))


def test_like_files_share_one_layout():
    one, other = (decode(encode(drawn(FIRST, seed=seed))) for seed in (1, 2))
    assert one.layout is other.layout and not torch.equal(one.flat, other.flat)


@pytest.mark.parametrize("method", SHARED)
def test_the_header_costs_little(method):
    adapter = drawn(method, SMOLLM2, rank=256)
    assert len(encode(adapter)) - 4 * adapter.num_params < 0.02 * 4 * 38_400


# --- stored dtypes ----------------------------------------------------------------------------------------------------


@each_method
@each_dtype
def test_the_header_states_the_error_made(method, dtype):
    adapter = drawn(method, head=HEAD)
    data = encode(adapter, dtype)
    back, stated = decode(data).flat.double().numpy(), read_header(data).own.error
    difference = back - adapter.flat.double().numpy()
    if stated is None:
        assert not difference.any()
        return
    assert 0 < stated.max_abs == np.abs(difference).max()
    relative = np.linalg.norm(difference) / np.linalg.norm(adapter.flat.double().numpy())
    assert stated.relative_l2 == pytest.approx(relative, rel=1e-12)


def test_int8_is_off_by_at_most_half_a_step():
    adapter = drawn(FIRST)
    back = decode(encode(adapter, "int8")).tensors
    for key, value in adapter.tensors.items():
        step = float(value.abs().max()) / 127
        assert float((back[key] - value).abs().max()) <= step * 0.5001
        assert float(back[key].abs().max()) == pytest.approx(float(value.abs().max()), rel=1e-6)


@each_dtype
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-39, -3.0e38], ids=str)
def test_extreme_values_are_stored(dtype, value):
    adapter = drawn(FIRST)
    adapter = replace(adapter, flat=torch.full_like(adapter.flat, value))
    back = decode(encode(adapter, dtype)).flat
    assert torch.allclose(back, adapter.flat, rtol=0.01, atol=1e-40)
    assert STORED_DTYPES[dtype].is_exact <= torch.equal(back.view(torch.int32), adapter.flat.view(torch.int32))


def test_smaller_dtypes_are_smaller():
    adapter = drawn(SHARED[0], SMOLLM2, rank=256)
    sizes = {name: len(encode(adapter, name)) for name in STORED_DTYPES}
    assert sizes["float32"] > 1.9 * sizes["bfloat16"] > 3.6 * sizes["int8"]
    files = {name: read_header(encode(adapter, name)) for name in sizes}
    assert files["int4"].index.data_bytes == 38_400 // 2 + 120 * 2
    assert files["int3"].index.data_bytes == 38_400 * 3 // 8 + 120 * 2
    for name, file in files.items():
        assert sizes[name] - file.index.data_bytes == file.data_at < 2000


@each_dtype
def test_a_file_states_the_oldest_format_that_can_hold_it(dtype):
    data, is_packed = encode(drawn(FIRST), dtype), STORED_DTYPES[dtype].bits < 8
    assert header_of(data)[1]["format"] == STORED_DTYPES[dtype].format == 1 + is_packed
    other = forged(data, lambda tree, kind, own: kind.update(format=2 - is_packed))
    with pytest.raises(FormatError, match=f"states format .* files in {dtype} are of format"):
        decode(other)


@pytest.mark.parametrize("dtype", [name for name, row in STORED_DTYPES.items() if row.bits < 8])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 3e38])
def test_a_scale_that_makes_no_numbers_is_refused(dtype, scale):
    bad = torch.tensor([scale]).bfloat16().view(torch.uint8).numpy().tobytes()
    data = forged(encode(drawn(FIRST), dtype), section=lambda section: bad + section[2:])
    with pytest.raises(FormatError, match="holds NaN or infinity"):
        decode(data)


# --- what encode refuses ----------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(dtype, value):
    adapter = drawn(FIRST)
    for key in adapter.layout.entries:
        with pytest.raises(FormatError, match=key.replace(".", r"\.") + " holds NaN"):
            encode(with_value(adapter, key, value), dtype)


def test_a_value_out_of_the_range_of_a_dtype_is_refused():
    key = next(iter(drawn(FIRST).layout.entries))
    adapter = with_value(drawn(FIRST), key, 3.4e38)
    with pytest.raises(FormatError, match="out of the range of bfloat16"):
        encode(adapter, "bfloat16")
    assert alike(decode(encode(adapter)), adapter)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(FormatError, match="did you mean 'int8'"):
        encode(drawn(FIRST), "int9")


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(FormatError, match="NaN|nan|float"):
        encode(replace(drawn(FIRST), scores={"loss": float("nan")}))


def test_a_layout_that_is_not_of_the_spec_is_refused():
    adapter = drawn(OWN[0], alpha=8)
    with pytest.raises(LayoutError, match="do not belong together"):
        replace(adapter, spec=replace(adapter.spec, alpha=9))


def test_names_that_collide_in_the_file_are_refused():
    with pytest.raises(FormatError, match="two tensors"):
        encode(drawn(FIRST, head={"score": (2,), "score.scale": (2,)}), "int8")
    assert decode(encode(drawn(FIRST, head={"score": (2,), "score.scale": (2,)}))).tensors["score.scale"].shape == (2,)


# --- site order -------------------------------------------------------------------------------------------------------


def _sites(*names, wide=()):
    return [Site(name, 16 if name in wide else 8, 8, 4, (1.0, 1.0)) for name in names]


LAYERED = [f"m.layers.{i}.{x}" for i in range(12) for x in ("q", "v", "mlp.0.up")]
ENCODER_DECODER = [f"{s}.block.{i}.layer.{j}.q" for s in ("encoder", "decoder") for i in range(3) for j in range(2)]
ORDERS = {
    "layered": (_sites(*LAYERED), 3),
    "two blocks": (_sites(*ENCODER_DECODER), 4),
    "every other layer wider": (_sites(*LAYERED, wide=[n for n in LAYERED if n.endswith("q")][::2]), 4),
    "gaps": (_sites("h.1.q", "h.2.q", "h.5.q", "h.9.q", "head", "0.q", "1.q"), 3),
    "one": (_sites("h.3.q"), 1),
    "by target, not by layer": (_sites(*(f"h.{i}.{x}" for x in "qv" for i in range(3))), 6),
    "downwards": (_sites("h.2.q", "h.1.q", "h.0.q"), 3),
    "leading zeros": (_sites("h.00.q", "h.01.q", "h.1.q"), 3),
    "a star in a name": (_sites("a*.0.q", "a*.1.q"), 2),
    "huge numbers": (_sites("h.12345678901.q", "h.12345678902.q"), 2),
}


@pytest.mark.parametrize("case", ORDERS)
def test_folding_keeps_names_widths_and_order(case):
    sites, num_records = ORDERS[case]
    folded = fold(sites)
    assert list(unfold(folded).items()) == [(s.name, (s.in_features, s.out_features)) for s in sites]
    assert len(folded) == num_records


@each_method
@pytest.mark.parametrize("case", ORDERS)
def test_an_adapter_keeps_the_order_of_its_layers(method, case):
    adapter = drawn(method, {s.name: (s.in_features, s.out_features) for s in ORDERS[case][0]})
    assert alike(decode(encode(adapter)), adapter)


# --- damage -----------------------------------------------------------------------------------------------------------


@each_dtype
def test_every_flipped_bit_is_seen(dtype):
    data = encode(drawn(FIRST, {"h.0.q": (4, 4), "h.1.q": (4, 4)}, rank=2), dtype)
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(FormatError):
                decode(damaged)


@each_dtype
def test_every_cut_is_seen(dtype):
    data = encode(drawn(FIRST, {"h.0.q": (4, 4)}, rank=2), dtype)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:length])
    with pytest.raises(FormatError):
        decode(data + b"\0")


@pytest.mark.parametrize("seed", range(40))
def test_other_damage_is_seen(seed):
    rng = random.Random(seed)
    data = bytearray(encode(drawn(rng.choice(list(METHODS)), seed=seed), rng.choice(list(STORED_DTYPES))))
    before = bytes(data)
    for _ in range(rng.randint(1, 20)):
        at, length = rng.randrange(len(data)), rng.randint(1, 30)
        data[at : at + length] = rng.randbytes(rng.choice([length, length, rng.randint(0, 30)]))
    if bytes(data) != before:
        with pytest.raises(FormatError):
            decode(data)


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_no_adapter(seed):
    rng = random.Random(seed)
    text = rng.choice(
        [rng.randbytes(40), b"[" * 4000, b"{" + b'"a":{' * 3000, b"{}" + b" " * 6, b"[]      ", b'"\xff"    ']
    )
    for data in (rng.randbytes(rng.randrange(200)), len(text).to_bytes(8, "little") + text + rng.randbytes(8)):
        with pytest.raises(FormatError):
            decode(data)


def test_the_digest_asked_for_is_the_digest_found():
    data, other = encode(drawn(FIRST)), encode(drawn(FIRST, seed=1))
    digest = read_header(data).own.digest
    assert alike(decode(data, digest), drawn(FIRST))
    with pytest.raises(FormatError, match="as asked for"):
        decode(other, digest)
