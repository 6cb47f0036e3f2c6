"""Adapters that mlx-lm wrote: the numbers of its documented layout, and what contradicts itself is refused."""

import json

import pytest
import torch
from mlx_formula import applied
from peft_oracle import here, logits
from safetensors.torch import save_file

from polyvera.errors import FormatError, LayoutError
from polyvera.store.mlx import import_mlx
from polyvera.store.mlx.config import KINDS

LAYERS = ("model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.q_proj")
PLAIN, DORA = KINDS


@pytest.fixture
def written(tmp_path):
    """A folder as mlx-lm writes it: A and B transposed, a scale that is not alpha / r, the last blocks."""

    def write(kind=PLAIN, names=LAYERS, num_layers=2, change=None, **parameters):
        noise = torch.Generator().manual_seed(3)
        tensors = {}
        for name in names:
            tensors[f"{name}.lora_a"] = 0.2 * torch.randn(32, 4, generator=noise)
            tensors[f"{name}.lora_b"] = 0.2 * torch.randn(4, 32, generator=noise)
            if kind == DORA:
                tensors[f"{name}.m"] = torch.rand(32, generator=noise) + 0.5
        (change or (lambda t: None))(tensors)
        save_file(tensors, tmp_path / "adapters.safetensors")
        parameters = {"rank": 4, "scale": 2.5, "dropout": 0.0, **parameters}
        config = {"fine_tune_type": kind, "num_layers": num_layers, "lora_parameters": parameters, "iters": 9}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_the_formula(kind, written, small_llama, ids):
    folder = written(kind, keys=["self_attn.q_proj", "self_attn.v_proj"])
    adapter = import_mlx(folder, small_llama)
    assert adapter.layout.site_names == LAYERS and adapter.layout.sites[0].scale == (2.5, 1.0)
    ours, _ = here(small_llama, adapter)
    theirs, _ = applied(small_llama, folder)
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ours, ids), logits(small_llama, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_layers": 1}, "num_layers=1 adapts later blocks"),
        ({"keys": ["self_attn.v_proj"]}, "keys=.* leaves out"),
        ({"change": lambda t: t.pop(f"{LAYERS[0]}.lora_b")}, "lora_b' is missing"),
        ({"change": lambda t: t.update({"model.norm.weight": torch.ones(3)})}, "no part of an adapter"),
    ],
)
def test_what_contradicts_itself_is_refused(given, said, written, small_llama):
    with pytest.raises(FormatError, match=said):
        import_mlx(written(**given), small_llama)


def test_what_does_not_fit_the_model_is_refused(written, small_llama, tmp_path):
    with pytest.raises(LayoutError, match="did you mean"):
        import_mlx(written(names=("model.layers.2.self_attn.q_prj",)), small_llama)
    with pytest.raises(LayoutError, match=r"\(32, 4\).*\(32, 8\)"):
        import_mlx(written(rank=8), small_llama)
    with pytest.raises(FormatError, match=r"adapters\.safetensors"):
        (tmp_path / "adapters.safetensors").unlink()
        import_mlx(tmp_path, small_llama)
