"""export_gguf: an Adapter becomes a GGUF file of type `adapter`, which llama.cpp applies to the converted base."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.folded import check_no_experts, folded, folded_rank
from polyvera.errors import SpecError, StoreError
from polyvera.model.load import public_name
from polyvera.store.gguf.architectures import Architecture, architecture_of
from polyvera.store.number_format import dtype_named, exact_dtype

# llama.cpp multiplies with fp32 and fp16 factors.
DTYPES = {torch.float32: torch.float32, torch.float16: torch.float16, torch.bfloat16: torch.float32}


def export_gguf(
    adapter: Adapter,
    file: str | Path,
    *,
    model: nn.Module | None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the equal LoRA of one rank with adapter.lora.alpha = rank, so that its reader scales it by 1.

    model: the bare base, which may be on the meta device: its family says what the layers are called in GGUF and whose
    rows are permuted. dtype: float32 or float16; None is the narrowest that keeps the numbers. Raises SpecError for a
    head, a magnitude, a family or a layer without a GGUF name; StoreError.
    """
    path = Path(file).absolute()
    if path.exists() and (path.is_dir() or not overwrite):
        raise StoreError(f"{path} is there already: name another file{'' if path.is_dir() else ', or overwrite it'}")
    if find_spec("gguf") is None:
        raise StoreError("writing GGUF needs the package gguf: pip install 'polyvera[gguf]'")
    tensors = gguf_tensors(adapter, model)
    chosen = DTYPES[exact_dtype(tensors.values())] if dtype is None else dtype_named(dtype)
    if chosen not in (torch.float32, torch.float16):
        raise SpecError(f"dtype={dtype!r}: a GGUF adapter is written in float32 or float16")
    _write(path, adapter, _architecture(adapter, model), {key: t.to(chosen) for key, t in tensors.items()})
    return path


def gguf_tensors(adapter: Adapter, model: nn.Module | None) -> dict[str, Tensor]:
    """lora_a (rank, in) and lora_b (out, rank) of each layer under its GGUF name, rows as in the converted base.

    Raises SpecError for what has no such form.
    """
    row, config = _architecture(adapter, model), getattr(model, "config", None)
    check_no_experts(adapter, "GGUF adapters")
    adapter.check_whole()
    if adapter.layout.head:
        raise SpecError(f"a GGUF adapter holds no head, and this one has {adapter.layout.head[0][0]}: use `merge`")
    layers = folded(adapter, model=model)
    names = _names(row, config, list(layers))
    found: dict[str, Tensor] = {}
    for site, factors in layers.items():
        found[f"{names[site]}.lora_a"] = factors["A"]
        found[f"{names[site]}.lora_b"] = _permuted(factors["B"], site, row, config)
    return found


def interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Rows (heads x 2 halves x n, any) of a projection in the order of rotary pairs: (heads x n x 2 halves, any)."""
    pairs = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _architecture(adapter: Adapter, model: nn.Module | None) -> Architecture:
    if model is None:
        raise SpecError(
            f"a GGUF adapter needs the base's configuration, and {adapter.model or 'its base'!r} is not on this "
            "machine: give the base, --model FOLDER"
        )
    return architecture_of(str(getattr(model.config, "model_type", "")))


def _names(row: Architecture, config: Any, sites: list[str]) -> dict[str, str]:
    """The name of each layer's weight in GGUF. Raises SpecError for a layer that has none."""
    import gguf

    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == row.name)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    names: dict[str, Any] = {site: table.get_name(f"{site}.weight", try_suffixes=(".weight",)) for site in sites}
    for site, name in names.items():
        if name is None or (name == "output.weight" and config.tie_word_embeddings):
            raise SpecError(f"{site} has no weight of its own in llama.cpp's {row.name}: leave it out, or use `merge`")
    return names


def _permuted(B: Tensor, site: str, row: Architecture, config: Any) -> Tensor:
    count = row.permutes.get(site.rpartition(".")[2])
    if count is None:
        return B
    num_heads = getattr(config, count, None) or config.num_attention_heads
    return interleaved(B, num_heads)


def _write(path: Path, adapter: Adapter, row: Architecture, tensors: dict[str, Tensor]) -> None:
    """Written aside and renamed."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}.new")
    writer = gguf.GGUFWriter(aside, row.name)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "LORA".lower())
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(folded_rank(adapter)))
        writer.add_name(adapter.layout.title)
        if adapter.model:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, public_name(adapter.model)[0])
        for key, tensor in sorted(tensors.items()):
            writer.add_tensor(key, tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
