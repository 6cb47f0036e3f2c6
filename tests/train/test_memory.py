"""memory: the most that the process has held."""

import torch

from polyvera.train.memory import forget_peak, peak_bytes


def test_the_peak_covers_what_is_held() -> None:
    forget_peak()
    before = peak_bytes()
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert peak_bytes() >= max(before, held.nbytes)
    assert held.sum() == held.numel()
