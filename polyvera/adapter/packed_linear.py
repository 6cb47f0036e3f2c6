"""linear: x Wᵀ, where W is frozen through a form of it that a library has packed for few rows.

torch's own product of a few rows takes up to three times as long on a CPU. Which library is faster depends on the
processor and on the shape, so each shape is tried once. A packed matrix is a second copy of the weight, and rounds
otherwise, so it is used only `with packed(packs)`, which serving does and training does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvera.adapter.base_layer import is_quantized

Product = Callable[[Tensor, Tensor | None], Tensor]
Form = Callable[[Tensor], Product]
Key = tuple[int, torch.Size, tuple[int, ...]]

# oneDNN and MKL pack for a number of rows; what they pack for these is good for others, too.
ONEDNN_ROWS, MKL_ROWS = 16, 64
# The numbers of rows that a form is tried with, and how often.
TRIAL_ROWS, TRIALS = (16, 64), 5
TOLERANCE = 1e-4


def onednn(weight: Tensor) -> Product:
    """Products with a copy that oneDNN packs: the faster form on AMD."""
    copy = torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x, bias: multiply(x, copy, bias, "none", [], "")


def mkl(weight: Tensor) -> Product:
    """Products with a copy that MKL packs: the faster form on Intel, save for a few rows of a wide matrix."""
    copy = torch.ops.mkl._mkl_reorder_linear_weight(weight, MKL_ROWS)
    multiply = torch.ops.mkl._mkl_linear.default
    return lambda x, bias: multiply(x, copy, weight, bias, x.numel() // x.shape[-1])


def forms() -> list[Form]:
    """The packed forms that this build of torch has."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return []
    known = [(onednn, torch.ops.mkldnn, "_linear_pointwise"), (mkl, torch.ops.mkl, "_mkl_linear")]
    return [form for form, library, name in known if hasattr(library, name)]


def fastest(weight: Tensor, among: Sequence[Form]) -> Form | None:
    """The form that multiplies a few rows with such a matrix in the least time; None where none is right."""
    times = {form: _seconds(form(weight), weight) for form in among}
    best = min(times, key=times.__getitem__, default=None)
    return None if best is None or times[best] == float("inf") else best


def _seconds(product: Product, weight: Tensor) -> float:
    """The least time of several, infinite for a product that is wrong."""
    draw = torch.Generator().manual_seed(0)
    drawn = (torch.randn(rows, weight.shape[1], generator=draw).to(weight.dtype) for rows in TRIAL_ROWS)
    return sum(_of_rows(product, x, weight) for x in drawn)


def _of_rows(product: Product, x: Tensor, weight: Tensor) -> float:
    expected, times = F.linear(x, weight), []
    for _ in range(TRIALS):
        started = perf_counter()
        found = product(x, None)
        times.append(perf_counter() - started)
    is_right = torch.allclose(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    return min(times) if is_right else float("inf")


class Packs:
    """The packed copies of frozen matrices, each made at its first product."""

    def __init__(self) -> None:
        self._frozen: set[int] = set()
        self._packed: dict[Key, tuple[Tensor, Product]] = {}
        self._forms: dict[torch.Size, Form | None] = {}

    @staticmethod
    def can(weight: Tensor) -> bool:
        """Whether this machine packs such a weight."""
        return bool(forms()) and weight.device.type == "cpu" and weight.dtype == torch.float32

    def freeze(self, weight: Tensor) -> None:
        """Vouches that a matrix, and every slice of it, keeps its values."""
        if self.can(weight):
            self._frozen.add(weight.untyped_storage().data_ptr())

    def of(self, weight: Tensor) -> Product | None:
        """The product with the packed form, None for a matrix that may change."""
        key = (weight.data_ptr(), weight.shape, weight.stride())
        known = self._packed.get(key)
        if known is None:
            if weight.untyped_storage().data_ptr() not in self._frozen:
                return None
            # Kept beside its copy, so that its place in memory stays its own.
            known = self._packed[key] = weight, self._pack(weight.contiguous())
        return known[1]

    def _pack(self, weight: Tensor) -> Product:
        if weight.shape not in self._forms:
            self._forms[weight.shape] = fastest(weight, forms())
        form = self._forms[weight.shape]
        return (lambda x, bias: F.linear(x, weight, bias)) if form is None else form(weight)


_PACKS: ContextVar[Packs | None] = ContextVar("polyvera_packs", default=None)


@contextmanager
def packed(packs: Packs) -> Iterator[None]:
    """Products of frozen matrices inside go through their packed copies."""
    token = _PACKS.set(packs)
    try:
        yield
    finally:
        _PACKS.reset(token)


def is_packed() -> bool:
    """Whether results may be rounded otherwise here, for speed."""
    return _packs() is not None


def _packs() -> Packs | None:
    """Those in force; a compiler has products of its own."""
    return None if torch.compiler.is_compiling() else _PACKS.get()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in) -> (..., out)."""
    packs = _packs()
    product = None if packs is None or not x.numel() else packs.of(weight)
    return F.linear(x, weight, bias) if product is None else product(x, bias)


class PackedModel:
    """The linear layers of a model answer through `linear` until undo()."""

    def __init__(self, model: nn.Module, packs: Packs) -> None:
        plain = (m for m in model.modules() if type(m) is nn.Linear and not is_quantized(m))
        self._layers = [layer for layer in plain if packs.can(layer.weight)]
        for layer in self._layers:
            packs.freeze(layer.weight)
            layer.forward = _Forward(layer)  # type: ignore[method-assign,assignment]

    def undo(self) -> None:
        """Gives the layers their own forward back."""
        for layer in self._layers:
            del layer.forward


class _Forward:
    def __init__(self, layer: nn.Linear) -> None:
        self._weight, self._bias = layer.weight, layer.bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)
