"""open_tensors: the tensors of a file that another program wrote, each looked at before it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyvera.adapter.layout import Shape
from polyvera.errors import FormatError, LayoutError
from polyvera.store.regular_file import open_regular

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LFS = b"version https://git-lfs"
# Where checkpoints keep a state dict among other things.
INNER = ("state_dict", "module", "model_state_dict")


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of a file: its shape, its dtype in safetensors' words, and the function that reads it."""

    shape: Shape
    dtype: str
    read: Callable[[], Tensor]

    def floats(self, key: str, shape: Shape, wanted_by: str) -> Tensor:
        """The tensor in fp32, of exactly that shape. Raises LayoutError, or FormatError for what are no finite floats.

        key, wanted_by: what it is and what asks for the shape, for the message.
        """
        if self.shape != shape:
            raise LayoutError(f"{key} has shape {self.shape}; {wanted_by} want {shape}")
        if self.dtype not in FLOATS:
            raise FormatError(f"{key} is of dtype {self.dtype}, not one of {', '.join(FLOATS)}")
        tensor = self.read().float()
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{key} holds numbers that are not finite: the adapter is broken")
        return tensor


@contextmanager
def open_tensors(path: Path) -> Iterator[Mapping[str, FileTensor]]:
    """The tensors of a safetensors file by name. Raises FormatError for what is no such file."""
    _check_pointer(path)
    try:
        opened: Any = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path.name} is not a whole safetensors file: {error}") from error
    with opened as file:
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        yield {
            key: FileTensor(tuple(part.get_shape()), part.get_dtype(), partial(file.get_tensor, key))
            for key, part in parts.items()
        }


def unpickled_tensors(path: Path) -> Mapping[str, FileTensor]:
    """The tensors of a pickled state dict, by torch.load(weights_only=True), which runs no code. Raises FormatError."""
    _check_pointer(path)
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a pickle holds, it is refused in one way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"{path.name} is not a plain state dict: {reason}") from error
    tree = next((tree[key] for key in INNER if isinstance(tree, dict) and isinstance(tree.get(key), dict)), tree)
    if not isinstance(tree, dict) or not all(isinstance(t, Tensor) for t in tree.values()):
        raise FormatError(f"{path.name} holds more than tensors by name: it is not a state dict")
    words = {dtype: word for word, dtype in FLOATS.items()}
    return {
        str(key): FileTensor(tuple(t.shape), words.get(t.dtype, str(t.dtype)), partial(_itself, t))
        for key, t in tree.items()
    }


def check_start(name: str, data: bytes) -> None:
    """Raises FormatError where a file begins as a pointer of Git LFS."""
    if data.startswith(LFS):
        raise FormatError(f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")


def _check_pointer(path: Path) -> None:
    with os.fdopen(open_regular(path, follows_links=True), "rb") as file:
        check_start(path.name, file.read(len(LFS)))


def _itself(tensor: Tensor) -> Tensor:
    return tensor
