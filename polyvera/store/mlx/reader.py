"""import_mlx: a folder that mlx-lm wrote becomes an Adapter of the same numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter, adapter_from
from polyvera.adapter.base_layer import widths
from polyvera.adapter.default_targets import block_of
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.layout import Widths
from polyvera.adapter.method import factor_shape
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import linear_layers
from polyvera.errors import FormatError, LayoutError, did_you_mean
from polyvera.store.foreign import MLX, diagnosis, foreign
from polyvera.store.mlx.config import LETTERS, WEIGHTS_NAME, MlxConfig, read_mlx_config
from polyvera.store.tensor_file import FileTensor, open_tensors


def import_mlx(folder: str | Path, model: nn.Module) -> Adapter:
    """An adapter of mlx-lm (lora or dora) as an Adapter: y = g ⊙ (W x + scale · (x lora_a) lora_b).

    model: the base, which may be on the meta device; where mlx-lm held it quantized, it is another than the one of
    training. What is adapted follows from the tensors, which num_layers and keys must not contradict. Raises
    FormatError for files that are broken, SpecError for a kind that cannot be imported, LayoutError where the model
    doesn't fit.
    """
    path = Path(folder)
    if foreign(path) is not MLX or not (path / WEIGHTS_NAME).is_file():
        raise FormatError(diagnosis(path, f"an adapter of mlx-lm with {WEIGHTS_NAME}"))
    config = read_mlx_config(path)
    with open_tensors(path / WEIGHTS_NAME) as file:
        sites = _sites(file, model)
        _check_chosen(config, sites, model)
        tensors = {f"{n}.{k}": _read(file, n, k, wide, config) for n, wide in sites.items() for k in config.row.trained}
    rank, scale = config.lora_parameters.rank, config.lora_parameters.scale
    spec = AdapterSpec(config.row.name, rank, tuple(sites), alpha=scale * rank, dropout=config.lora_parameters.dropout)
    base = "" if any(p.is_meta for p in model.parameters()) else fingerprint(model)
    origin = {"base_model_class": type(model).__name__}
    return replace(adapter_from(spec, sites, tensors, base=base), origin=origin)


def _sites(file: Mapping[str, FileTensor], model: nn.Module) -> dict[str, Widths]:
    """The layers that the tensors are of, in the model's order. Raises LayoutError for one that the model lacks."""
    layers, endings = linear_layers(model), tuple(f".{name}" for name in LETTERS.values())
    stray = next((key for key in sorted(file) if not key.endswith(endings)), None)
    if stray is not None:
        raise FormatError(f"{WEIGHTS_NAME} holds {stray!r}, which is no part of an adapter and cannot be imported")
    named = {key.rpartition(".")[0] for key in file}
    for name in sorted(named - set(layers)):
        raise LayoutError(
            f"{WEIGHTS_NAME} adapts {name!r}, which is no linear layer of {type(model).__name__}"
            f"{did_you_mean(name, layers)}"
        )
    return {name: widths(layer) for name, layer in layers.items() if name in named}


def _check_chosen(config: MlxConfig, sites: Collection[str], model: nn.Module) -> None:
    """Raises FormatError for tensors that mlx-lm would not load under this config."""
    numbers = sorted({int(block_of(name)[1]) for name in linear_layers(model) if block_of(name)[1]})
    first = numbers[-config.num_layers] if 0 < config.num_layers <= len(numbers) else 0
    keys = config.lora_parameters.keys
    for name in sites:
        parent, number = block_of(name)
        inside = name.removeprefix(f"{parent}.{number}.") if number else name
        if keys is not None and not {inside, name} & set(keys):
            raise FormatError(f"{WEIGHTS_NAME} holds {name!r}, which lora_parameters.keys={list(keys)} leaves out")
        if number and int(number) < first and name not in (keys or ()):
            raise FormatError(f"{WEIGHTS_NAME} holds {name!r}, and num_layers={config.num_layers} adapts later blocks")


def _read(file: Mapping[str, FileTensor], site: str, letter: str, wide: Widths, config: MlxConfig) -> Tensor:
    """One factor in polyvera's orientation: mlx-lm keeps A and B transposed."""
    key = f"{site}.{LETTERS[letter]}"
    if key not in file:
        raise FormatError(f"{key!r} is missing from {WEIGHTS_NAME}: the file is cut")
    shape = factor_shape(letter, config.lora_parameters.rank, *wide)[::-1]
    found = file[key].floats(key, shape, "the model and lora_parameters")
    return found if letter == "m" else found.T
