"""The parts of a widened layer that need no engine; tests/vllm/test_engine.py has whole ones."""

import pytest
import torch
from torch import nn

from polyvera.vllm.slots import SiteVectors

pytest.importorskip("vllm.lora.layers.base_linear", reason="vLLM has an environment of its own: scripts/test-vllm")


def test_vectors_are_known_among_what_vllm_passes_on():
    from polyvera.vllm.layers import is_vectors

    vectors = SiteVectors(torch.ones(2), torch.ones(3), None)
    assert is_vectors([None, vectors]) and is_vectors([vectors])
    assert not any(map(is_vectors, (torch.ones(2, 2), [torch.ones(2)], [None], [], None)))


@pytest.mark.parametrize("wide", [1, 1024, 2500])
def test_a_weight_is_probed_with_the_whole_identity(wide):
    from polyvera.vllm.layers import PROBE_ROWS, _identity

    parts = _identity(torch.zeros(4, wide))
    assert torch.equal(torch.cat(parts), torch.eye(wide)) and max(map(len, parts)) <= PROBE_ROWS


def test_matrices_that_are_not_served_keep_their_shapes_and_no_memory():
    from polyvera.vllm.layers import only_vectors

    layer = nn.Module()
    layer.lora_a_stacked = (torch.ones(3, 1, 1, 20),)
    layer.lora_b_stacked = (torch.ones(3, 1, 30, 1), torch.ones(3, 1, 10, 1))
    only_vectors(layer, rank=8)
    assert [tuple(t.shape) for t in layer.lora_a_stacked] == [(3, 1, 8, 20)]
    assert [tuple(t.shape) for t in layer.lora_b_stacked] == [(3, 1, 30, 8), (3, 1, 10, 8)]
    assert all(t.untyped_storage().nbytes() == t.element_size() for t in layer.lora_a_stacked + layer.lora_b_stacked)
