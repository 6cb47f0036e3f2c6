"""adamw_step on a GPU: clipping and AdamW for any number of slots in one launch, each number read and written once."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyvera.adapter.pinned_memory import to_device
from polyvera.train.fleet.adamw import AdamSettings, ParamGroup, SlotStep, SlotTensors

BLOCK = 1024


def adamw_step(
    tensors: SlotTensors, groups: Sequence[ParamGroup], steps: Sequence[SlotStep], settings: AdamSettings
) -> None:
    """What adamw.adamw_step does, by one launch for each group and with nothing read back."""
    rows = to_device(torch.tensor([step.index for step in steps]), tensors.flat.device)
    with torch.cuda.device_of(tensors.flat):  # type: ignore[no-untyped-call]
        for group in groups:
            scalars = torch.tensor([_scalars(step, group.lr * step.factor, settings) for step in steps])
            _launch(tensors, group, rows, to_device(scalars, tensors.flat.device), settings)


def _launch(tensors: SlotTensors, group: ParamGroup, rows: Tensor, scalars: Tensor, settings: AdamSettings) -> None:
    num_blocks = triton.cdiv(group.end - group.begin, BLOCK)
    _adamw[(len(rows) * num_blocks,)](
        tensors.flat,
        tensors.grads,
        tensors.exp_avg,
        tensors.exp_avg_sq,
        rows,
        scalars,
        tensors.flat.stride(0),
        group.begin,
        group.end,
        num_blocks,
        1 - settings.beta1,
        1 - settings.beta2,
        BLOCK,
    )


def _scalars(step: SlotStep, lr: float, settings: AdamSettings) -> tuple[float, float, float, float]:
    """(c, f, α, ε) of w ← f w - α m / (√v + ε), with m and v the moments of c g.

    α and ε hold the corrections of both moments' bias (Kingma 2015, the end of section 2).
    """
    first, second = 1 - settings.beta1**step.step, sqrt(1 - settings.beta2**step.step)
    return step.clip, 1 - lr * settings.weight_decay, lr * second / first, settings.eps * second


@triton.jit
def _adamw(
    flat,
    grads,
    exp_avg,
    exp_avg_sq,
    rows,
    scalars,
    stride,
    begin,
    end,
    num_blocks,
    weight1,
    weight2,
    BLOCK: tl.constexpr,
):
    number, block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    own = scalars + 4 * number
    clip, decay, lr, eps = tl.load(own), tl.load(own + 1), tl.load(own + 2), tl.load(own + 3)
    columns = begin + block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < end
    at = tl.load(rows + number) * stride + columns
    g = tl.load(grads + at, mask=inside).to(tl.float32) * clip
    m = tl.load(exp_avg + at, mask=inside).to(tl.float32)
    v = tl.load(exp_avg_sq + at, mask=inside).to(tl.float32)
    w = tl.load(flat + at, mask=inside).to(tl.float32)
    m += weight1 * (g - m)
    v += weight2 * (g * g - v)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(flat + at, decay * w - lr * m / (tl.sqrt(v) + eps), mask=inside)
    tl.store(grads + at, 0.0, mask=inside)
