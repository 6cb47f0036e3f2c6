from math import prod

import pytest
import torch
from torch import Tensor

from polyvera.adapter.equation import (
    NormParts,
    Vectors,
    adapt,
    adapt_naive,
    delta,
    delta_weight,
    factored_row_norm,
    mixed,
    row_norm,
)
from polyvera.adapter.method import METHODS, factor_shape
from polyvera.adapter.spec import AdapterSpec

RANK, IN, OUT, TOKENS = 6, 20, 14, (3, 5)
ROWS = [METHODS[name].with_magnitude() for name in METHODS] + [METHODS[name] for name in METHODS]
IDS = [f"{row.name}-{'m' if 'm' in row.factors else ''}" for row in ROWS]


def draw(row, dtype: torch.dtype, rows: tuple[int, ...] = ()) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    values = {}
    for letter in row.factors:
        if letter == "b" and "b" not in row.trained:
            continue
        lead = rows if letter in "Cdbm" else ()
        value = torch.randn(*lead, *factor_shape(letter, RANK, IN, OUT), generator=g, dtype=torch.float64)
        values[letter] = (value.abs() + 1 if letter == "m" else value).to(dtype)
    return values


def own_of(f: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """The letters of one row of the batch, where each has its own."""
    dims = {k: 2 if k in "ABC" else 1 for k in f}
    return {k: v if v.dim() == dims[k] else v[i].squeeze(0) for k, v in f.items()}


def reference(row, f: dict[str, Tensor], W: Tensor, x: Tensor, bias: Tensor, scale) -> Tensor:
    """The equation as it is written, with a dense ΔW, one row of the batch at a time."""
    outs = []
    for i in range(x.shape[0]):
        own = own_of(f, i)
        dW = delta_weight(own["A"], own["B"], own.get("d"), own.get("b"), scale, own.get("C"))
        g = own["m"] / row_norm(W, dW).detach() if "m" in own else torch.ones(())
        outs.append(g * (x[i] @ (W + dW).T) + bias)
    return torch.stack(outs)


def run(row, dtype: torch.dtype, rows: tuple[int, ...], fast) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    W, bias = torch.randn(OUT, IN, generator=g).to(dtype), torch.randn(OUT, generator=g).to(dtype)
    x = torch.randn(*TOKENS, IN, generator=g).to(dtype).requires_grad_()
    weights = torch.randn(*TOKENS, OUT, generator=g).to(dtype)
    f = {k: v.requires_grad_(k in row.trained) for k, v in draw(row, dtype, rows).items()}
    scale = AdapterSpec(row.name, rank=RANK, alpha=9.0 if row.takes_alpha else None).scale_of("")
    if fast is None:
        out = reference(row, f, W, x, bias, scale)
    else:
        norm = None
        if "m" in f:
            of = [own_of(f, i) for i in range(TOKENS[0])]
            parts = NormParts.of(W, f["A"])
            each = [Vectors(o["B"], o.get("d"), o.get("b"), scale, C=o.get("C")) for o in of]
            norms = [factored_row_norm(parts, v) for v in each]
            norm = (torch.stack(norms)[:, None] if rows else norms[0]).detach()
        v = Vectors(f["B"], f.get("d"), f.get("b"), scale, f.get("m"), norm, f.get("C"))
        out = fast(x @ W.T + bias, x @ f["A"].T, v, bias)
    (out * weights).sum().backward()
    return {"out": out.detach(), "x": x.grad, **{k: f[k].grad for k in row.trained}}


@pytest.mark.parametrize("rows", [(), (TOKENS[0], 1)], ids=["one adapter", "one a row"])
@pytest.mark.parametrize("row", ROWS, ids=IDS)
@pytest.mark.parametrize("fast", [adapt, adapt_naive])
def test_output_and_gradients_equal_the_equation_in_float64(row, rows, fast) -> None:
    truth, found = run(row, torch.float64, rows, None), run(row, torch.float32, rows, fast)
    assert set(truth) == set(found) and set(row.trained) < set(found)
    for name, value in truth.items():
        error = (found[name].double() - value).norm() / value.norm()
        assert error < 1e-5, (name, error.item())


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_fast_path_keeps_u_and_at_most_the_output(row) -> None:
    kept: list[Tensor] = []
    f = {k: v.requires_grad_(k in row.trained) for k, v in draw(row, torch.float32).items()}
    own = {t.untyped_storage().data_ptr() for t in f.values()}
    y, u = torch.randn(*TOKENS, OUT, requires_grad=True), torch.randn(*TOKENS, RANK, requires_grad=True)
    norm = torch.ones(OUT) if "m" in f else None

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own and t is not norm:
            kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        adapt(y, u, Vectors(f["B"], f.get("d"), f.get("b"), (1.0, 1.0), f.get("m"), norm, f.get("C")))
    shapes = sorted((t.numel() // t.shape[-1], t.shape[-1]) for t in kept)
    num_u = 2 if "C" in f else 1  # what goes into a core, and what comes out
    assert shapes == [(prod(TOKENS), RANK)] * num_u + ([(prod(TOKENS), OUT)] if "m" in f else [])


def test_the_norm_needs_no_dense_delta() -> None:
    g = torch.Generator().manual_seed(2)
    W, A, B = (torch.randn(*s, generator=g) for s in ((OUT, IN), (RANK, IN), (OUT, RANK)))
    d, b = torch.randn(RANK, generator=g), torch.randn(OUT, generator=g)
    dense = row_norm(W, delta_weight(A, B, d, b))
    assert torch.allclose(factored_row_norm(NormParts.of(W, A), Vectors(B, d, b)), dense, rtol=1e-5)


def test_a_row_of_zeros_has_norm_one() -> None:
    W, A, B = torch.zeros(OUT, IN), torch.ones(RANK, IN), torch.zeros(OUT, RANK)
    assert row_norm(W, delta_weight(A, B)).eq(1).all()
    assert factored_row_norm(NormParts.of(W, A), Vectors(B)).eq(1).all()


def test_delta_is_delta_weight_applied() -> None:
    g = torch.Generator().manual_seed(3)
    A, B, x = (torch.randn(*s, generator=g) for s in ((RANK, IN), (OUT, RANK), (4, IN)))
    d, b = torch.randn(RANK, generator=g), torch.randn(OUT, generator=g)
    for C in (None, torch.randn(RANK, RANK, generator=g)):
        whole = delta_weight(A, B, d, b, (3.0, 2.0), C)
        assert torch.allclose(delta(x, A, B, d, b, (3.0, 2.0), C), x @ whole.T, atol=1e-3)


@pytest.mark.parametrize(
    ("x_axes", "rows"), [((3, 5), (3,)), ((7,), (7,)), ((3, 2, 5), (3,)), ((3, 5), (3, 5)), ((1, 5), (1,))]
)
def test_a_core_is_one_for_each_row_or_for_each_token(x_axes: tuple[int, ...], rows: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(4)
    C = torch.randn(*rows, RANK, RANK, generator=g)
    u, d = torch.randn(*x_axes, RANK, generator=g), torch.randn(*x_axes, RANK, generator=g)
    between = (1,) * (len(x_axes) - len(rows))
    found, left = mixed(u, Vectors(torch.ones(OUT, RANK), d, C=C.view(*rows, *between, RANK, RANK)))
    each = C.view(*rows, *between, RANK, RANK).expand(*x_axes, RANK, RANK)
    assert torch.allclose(found, torch.einsum("...ij,...j->...i", each, d * u), atol=1e-5)
    assert left.d is None and left.C is None
