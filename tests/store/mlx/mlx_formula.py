"""What mlx-lm computes from a folder, by its documented formula."""

import copy
import json

from safetensors.torch import load_file


def applied(base, folder):
    """The base with mlx-lm's formula in its weights: y = (m / ‖W + s (a b)ᵀ‖) (W x + s (x a) b)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, scale = load_file(folder / "adapters.safetensors"), config["lora_parameters"]["scale"]
    model = copy.deepcopy(base)
    for name in {key.rpartition(".")[0] for key in tensors}:
        a, b, m = (tensors.get(f"{name}.{letter}") for letter in ("lora_a", "lora_b", "m"))
        layer = model.get_submodule(name)
        W = layer.weight.data + scale * (a @ b).T
        layer.weight.data = W if m is None else (m / W.norm(dim=1))[:, None] * W
    return model, config
