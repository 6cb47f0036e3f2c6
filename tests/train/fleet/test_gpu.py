"""A fleet on each device that is here: the numbers of its solo runs, and one wait for the device a round."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fleet import apart, fleet, solo
from tiny_models import make_model, make_tokenizer

from polyvera.adapter.method import METHODS
from polyvera.model.load import Base
from polyvera.train.fleet.fleet import Fleet

SHARED = next(name for name, row in METHODS.items() if row.shares_basis)
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])


def base_on(device: str) -> Base:
    return Base(make_model().to(device), make_tokenizer())


@each_device
def test_a_member_equals_its_solo_run_on_the_device(folder: Path, device: str) -> None:
    result = fleet(folder, base=base_on(device), weight_decay=0.1, clip=0.05)
    for outcome in result.outcomes[::2]:
        alone = solo(folder / f"{outcome.name}.jsonl", base=base_on(device), weight_decay=0.1, clip=0.05)
        assert apart(outcome, alone) < 1e-4


@pytest.mark.gpu
@NO_CUDA
def test_a_round_waits_for_the_device_once(folder: Path) -> None:
    """Rows of one length, so that no mask has to be looked at; the first rounds compile and fill caches."""
    line = '{"prompt": "w1 w2", "completion": "w3 w4"}\n'
    for path in folder.glob("*.jsonl"):
        path.write_text(line * 8)
    waits: list[int] = []
    seen: list[Any] = []

    def watch(now: Fleet) -> None:
        waits.append(len(seen))
        seen.clear()
        torch.cuda.set_sync_debug_mode("warn" if now.traffic.rounds < 8 else "default")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *given, **more: seen.extend([message] * ("synchroniz" in str(message)))
        fleet(folder, watch, base=base_on("cuda"), method=SHARED, slots=5)
    assert waits[3:8] == [1] * 5
