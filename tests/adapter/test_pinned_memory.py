"""Copies to a device and back keep every number, in order and dtype."""

import pytest
import torch

from polyvera.adapter.pinned_memory import staged, to_device, to_host

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(("values", "dtype"), [([3, 1, 2], torch.long), ([0.5, -1.0], torch.float32), ([], torch.long)])
def test_numbers_come_back(device, values, dtype):
    host = staged(values, device, dtype)
    assert host.device.type == "cpu" and host.is_pinned() == (device.type == "cuda")
    there = to_device(values, device, dtype)
    assert there.device.type == device.type and there.dtype == dtype
    assert to_host(there).tolist() == host.tolist() == values
    again = to_device(torch.tensor(values, dtype=dtype).reshape(1, -1), device)
    assert again.shape == (1, len(values)) and again.dtype == dtype and to_host(again)[0].tolist() == values
