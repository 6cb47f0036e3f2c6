"""fingerprint: a short name for a frozen base model's weights, so that an adapter is never applied to another's.

Two parts: one of the tensors that quantizers leave alone (norms, embeddings), one of the linear weights. Both take
evenly spaced elements of every tensor, rounded to bf16, so that an fp32 and a bf16 copy of one checkpoint agree; the
second is empty for a quantized base, and an empty part agrees with any.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from polyvera.adapter.adapted_experts import Adapted
from polyvera.adapter.base_layer import is_linear, is_quantized
from polyvera.adapter.layer import HeadBank
from polyvera.adapter.layer_bank import LayerBank
from polyvera.adapter.targets import HEAD_NAMES
from polyvera.errors import FingerprintError

SAMPLES = 64


def fingerprint(model: nn.Module) -> str:
    """`dense-linear`, each 16 hex digits or empty, of the bare base; heads and banks do not count."""
    dense, linear, whole = hashlib.sha256(), hashlib.sha256(), True
    for name, module in sorted(_base_modules(model, "").items()):
        if is_linear(module):
            whole = whole and not is_quantized(module)
        sha = linear if is_linear(module) else dense
        for key, parameter in module.named_parameters(recurse=False):
            if sha is dense or not is_quantized(module):
                sha.update(f"{name}.{key}{tuple(parameter.shape)}".encode() + _sampled(parameter))
    return f"{dense.hexdigest()[:16]}-{linear.hexdigest()[:16] if whole else ''}"


def _base_modules(module: nn.Module, prefix: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {prefix: module}
    for name, child in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        if full not in HEAD_NAMES and not isinstance(child, LayerBank | HeadBank):
            found.update(_base_modules(child.base if isinstance(child, Adapted) else child, full))
    return found


def _sampled(parameter: Tensor) -> bytes:
    flat = parameter.detach().flatten()
    step = max(1, flat.numel() // SAMPLES)
    return flat[::step][:SAMPLES].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()


def agrees(adapter: str, model: str) -> bool:
    """Whether no part is known on both sides and differs."""
    parts = zip(adapter.split("-"), model.split("-"), strict=False)
    return all(not given or not here or given == here for given, here in parts)


def check_fingerprint(adapter: str, model: str) -> None:
    """Raises FingerprintError where they do not agree."""
    if not agrees(adapter, model):
        raise FingerprintError(
            f"the adapter was trained on the base model {adapter}, and this is {model}: load that base, or pass "
            "check_base=False to apply it all the same"
        )
