"""export_mlx: an Adapter becomes the folder that mlx-lm's --adapter-path names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.default_targets import block_of
from polyvera.adapter.folded import check_no_experts, folded, folded_rank
from polyvera.errors import SpecError
from polyvera.store.folder import check_free, write_folder
from polyvera.store.foreign import CONFIG_NAME
from polyvera.store.mlx.config import ALL_BLOCKS, KINDS, LETTERS, WEIGHTS_NAME
from polyvera.store.number_format import dtype_named, exact_dtype, written

BLOCKS = "model.layers"  # what mlx-lm's models call their list of blocks


def export_mlx(
    adapter: Adapter,
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes adapters.safetensors and adapter_config.json: the equal LoRA, or DoRA, of one rank and of scale 1.

    model: the bare base, which a basis that is computed from its weights needs. dtype: of the numbers; None is the
    narrowest that keeps them. overwrite: replaces a folder that holds nothing but such an adapter. Raises SpecError for
    a head, or a layer that mlx-lm calls otherwise; BasisError, StoreError.
    """
    path = Path(folder).absolute()
    check_free(path, (CONFIG_NAME, WEIGHTS_NAME), overwrite)
    _check(adapter)
    magnitude = "m" in adapter.layout.method.factors
    layers = folded(adapter, magnitude=magnitude, model=model)
    tensors: dict[str, Tensor] = {
        f"{n}.{LETTERS[k]}": t.T if t.dim() > 1 else t for n, f in layers.items() for k, t in f.items()
    }
    chosen = exact_dtype(tensors.values()) if dtype is None else dtype_named(dtype)
    text = json.dumps(_config(adapter, magnitude), indent=2) + "\n"
    write_folder(path, {WEIGHTS_NAME: save(written(tensors, chosen)), CONFIG_NAME: text.encode()})
    return path


def _config(adapter: Adapter, magnitude: bool) -> dict[str, Any]:
    plain, with_magnitude = KINDS
    keys = {name.removeprefix(".".join(block_of(name)) + ".") for name in adapter.layout.site_names}
    parameters = {"rank": folded_rank(adapter), "scale": 1.0, "dropout": adapter.spec.dropout, "keys": sorted(keys)}
    return {
        "fine_tune_type": with_magnitude if magnitude else plain,
        "model": adapter.model,
        "num_layers": ALL_BLOCKS,
        "lora_parameters": parameters,
    }


def _check(adapter: Adapter) -> None:
    """Raises SpecError for what mlx-lm has no name for."""
    check_no_experts(adapter, "mlx-lm's adapters")
    adapter.check_whole()
    if adapter.layout.head:
        raise SpecError(f"mlx-lm's adapters hold no head, and this one has {adapter.layout.head[0][0]}: use `merge`")
    for name in adapter.layout.site_names:
        if block_of(name)[0] not in (BLOCKS, ""):
            raise SpecError(f"{name} is not a layer of {BLOCKS}, as mlx-lm's language models have them: use `merge`")
