"""A x beside W x: the same numbers, eager and in a captured graph, and nothing of it where no stream was given."""

import pytest
import torch
from torch import nn

from polyvera.adapter.inject import inject
from polyvera.adapter.layer_bank import LayerBank
from polyvera.adapter.route import Route, route
from polyvera.adapter.side_stream import fork, join, side_stream
from polyvera.adapter.spec import AdapterSpec

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SLOTS = [2, 0, 3, 1]


def test_without_a_stream_nothing_is_begun_ahead(small_llama: nn.Module, ids, scramble, monkeypatch) -> None:
    scramble(inject(small_llama, AdapterSpec(rank=4), 3))
    monkeypatch.setattr(LayerBank, "prepare", lambda *_: pytest.fail("was prepared"))
    with side_stream(None), torch.no_grad(), route(SLOTS):
        small_llama(ids)
        assert fork() is None
        join()


@pytest.mark.parametrize("name", ["vera", "dvora", "lora"])
def test_what_is_prepared_is_what_the_layer_takes(small_llama: nn.Module, ids, scramble, name, monkeypatch) -> None:
    """The host's share of it, which needs no GPU."""
    scramble(inject(small_llama, AdapterSpec(name, rank=4, targets="all-linear"), 3))
    with torch.no_grad(), route(SLOTS):
        plain = small_llama(ids).logits
        forward = LayerBank.forward
        monkeypatch.setattr(
            LayerBank, "forward", lambda self, x, y, pick: (self.prepare(x), forward(self, x, y, pick))[1]
        )
        assert torch.equal(small_llama(ids).logits, plain)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("name", ["vera", "dvora", "lora"])
def test_two_streams_compute_what_one_does(small_llama: nn.Module, ids, scramble, device: str, name: str) -> None:
    model = small_llama.to(device)
    scramble(inject(model, AdapterSpec(name, rank=4, targets="all-linear"), 3))
    part, x = model.model.layers[0].mlp, torch.randn(4, 3, 32, device=device)
    slots = torch.tensor(SLOTS, device=device)
    stream, side = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.no_grad(), route(Route.on_device(slots)):
        plain = part(x)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream), side_stream(side):
        for _ in range(3):
            with route(Route.on_device(slots)):
                eager = part(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream), route(Route.on_device(slots)):
            captured = part(x)
        graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(eager, plain)
    torch.testing.assert_close(captured, plain)
