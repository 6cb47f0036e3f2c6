"""Which basis a folder means: the key that draws it where one does, the pair itself where none does."""

from dataclasses import replace

import pytest
import torch

from polyvera.adapter.basis import digest, draw_basis
from polyvera.adapter.spec import DTYPES, GIVEN, AdapterSpec, BasisKey
from polyvera.errors import BasisError, LayoutError, SpecError
from polyvera.store.peft.basis import MAX_DRAWN, check_digest, recognized, redrawn
from polyvera.store.peft.config import PeftConfig

SITES = {"a": (8, 6), "b": (5, 9)}
SPEC = AdapterSpec(rank=4, seed=3)
KEY = BasisKey("kaiming_uniform", 3, 4, 8, 9)


def config(**keys):
    return PeftConfig(peft_type="VERA", target_modules=["a"], r=4, **keys)


def stored(key):
    basis = draw_basis(key)
    return {"A": basis.A, "B": basis.B}


@pytest.mark.parametrize("dtype", DTYPES)
def test_pefts_own_draw_is_known_in_every_rounding(dtype):
    found, given = recognized(SPEC, config(), SITES, stored(replace(KEY, dtype=dtype)))
    assert given is None and (found.basis_dtype, found.in_max, found.out_max) == (dtype, None, None)


def test_a_recorded_key_is_tried_first():
    key = replace(KEY, init="orthogonal", in_max=12, out_max=20)
    whole = stored(key)
    cut = {"A": whole["A"][:, :8], "B": whole["B"][:9]}
    recorded = config(basis_init="orthogonal", in_max=12, out_max=20)
    found, given = recognized(SPEC, recorded, SITES, cut)
    assert given is None and (found.init, found.in_max, found.out_max) == ("orthogonal", 12, 20)


def test_what_no_key_draws_is_kept_as_it_is():
    pair = {name: tensor + 1 for name, tensor in stored(KEY).items()}
    found, given = recognized(SPEC, config(), SITES, pair)
    assert found.init == GIVEN and torch.equal(given.A, pair["A"]) and torch.equal(given.B, pair["B"])
    sha256 = digest(pair["A"], pair["B"])
    recognized(SPEC, config(in_max=8, out_max=9, basis_sha256=sha256), SITES, pair)
    with pytest.raises(BasisError, match=sha256[:12]):
        recognized(SPEC, config(in_max=8, out_max=9, basis_sha256="0" * 64), SITES, pair)


def test_a_digest_is_checked_where_one_is_recorded():
    check_digest(config(), "f" * 64)
    check_digest(config(basis_sha256="f" * 64), "f" * 64)
    with pytest.raises(BasisError):
        check_digest(config(basis_sha256="f" * 64), "e" * 64)


def test_the_dtype_is_the_one_asked_for_then_the_recorded_one_then_the_bases(small_llama):
    name = "model.layers.0.self_attn.q_proj"
    low = small_llama.to(torch.bfloat16)
    sites = {name: (32, 32)}
    assert redrawn(SPEC, config(), sites, low, None).basis_dtype == "bfloat16"
    assert redrawn(SPEC, config(basis_dtype="float16"), sites, low, None).basis_dtype == "float16"
    assert redrawn(SPEC, config(basis_dtype="float16"), sites, low, "float32").basis_dtype == "float32"
    low.get_submodule("model.layers.1.self_attn.q_proj").half()
    with pytest.raises(SpecError, match="bfloat16 and float16"):
        redrawn(SPEC, config(), {**sites, "model.layers.1.self_attn.q_proj": (32, 32)}, low, None)


def test_a_huge_basis_is_refused_before_it_is_drawn(small_llama):
    with pytest.raises(LayoutError, match="numbers"):
        redrawn(SPEC, config(), {"a": (MAX_DRAWN, 8)}, small_llama, None)
