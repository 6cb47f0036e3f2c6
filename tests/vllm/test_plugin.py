"""What the plugin widens is widened once; without adapters to serve it touches nothing."""

import sys
from types import ModuleType

import pytest
import torch

from polyvera.errors import SpecError
from polyvera.vllm.plugin import _guarded, _replace, register


class Owner:
    """Stands for a class of vLLM's."""

    def double(self, x: int) -> int:
        """Twice as much."""
        return 2 * x


def one_more(old):
    return lambda self, x: old(self, x) + 1


def test_a_function_is_widened_once(monkeypatch):
    monkeypatch.setattr(Owner, "double", Owner.double)
    for _ in range(3):
        _replace(Owner, "double", one_more)
    assert Owner().double(4) == 9 and Owner.double.__doc__ == "Twice as much."


def test_a_function_that_is_gone_is_told():
    with pytest.raises(SpecError, match=r"no Owner\.triple"):
        _replace(Owner, "triple", one_more)


def test_the_plugin_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("POLYVERA_METHODS", "none")
    monkeypatch.setitem(sys.modules, "vllm.config", ModuleType("nothing is imported from here"))
    register()


def test_settings_that_cannot_be_end_the_start(monkeypatch):
    monkeypatch.setenv("POLYVERA_METHODS", "verra")
    with pytest.raises(SpecError, match="did you mean 'vera'"):
        register()


def test_a_token_without_adapter_gets_nothing_from_vllms_matrices():
    ops = pytest.importorskip("vllm.lora.ops.torch_ops.lora_ops", reason="vLLM has an environment of its own")
    torch.manual_seed(0)
    inputs, weights, indices = torch.randn(4, 2), torch.randn(3, 5, 2), torch.tensor([0, -1, 2, -1])
    plain = getattr(ops.bgmv_expand, "__wrapped__", ops.bgmv_expand)
    output = torch.zeros(4, 5)
    _guarded(plain)(inputs, weights, output, indices, True)
    assert not output[[1, 3]].any()
    torch.testing.assert_close(output[[0, 2]], torch.einsum("ti,toi->to", inputs[[0, 2]], weights[[0, 2]]))
