"""The formats of other programs that adapters are written in and read from, one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from polyvera.adapter.adapter import Adapter
from polyvera.errors import FormatError
from polyvera.model.load import load_as, skeleton
from polyvera.model.unread import CLASS
from polyvera.store.foreign import CONFIG_NAME, MLX, diagnosis, foreign
from polyvera.store.gguf import export_gguf
from polyvera.store.mlx import export_mlx, import_mlx
from polyvera.store.peft import export_peft, import_peft
from polyvera.store.peft.base_model import base_for
from polyvera.store.peft.card import POOLED
from polyvera.store.peft.config import PICKLE_NAME
from polyvera.store.peft.origin import TASK
from polyvera.store.peft.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PICKLES = (PICKLE_NAME,)
CAUSAL_LM, SEQ_CLS = TASKS["CAUSAL_LM"], TASKS["SEQ_CLS"]
# Classes of polyvera's own, and the one of transformers whose layers have the same names.
OWN_CLASSES = {POOLED: SEQ_CLS.auto}


def _never(path: Path, *given: Any, **named: Any) -> Any:
    raise FormatError(diagnosis(path, "an adapter that is read"))


@dataclass(frozen=True, slots=True)
class AdapterFormat:
    """One program's format.

    write: (adapter, path, model=, ...) -> path; the model may be None, or have no weights. file_name: what a written
    file is called in a folder, '' where a folder is written. is_folder_of: whether a folder is an adapter of it. base:
    (folder, name, ...) -> the base model of that name, as the folder wants it. read: (folder, model, ...) -> adapter.
    """

    name: str
    write: Callable[..., Path]
    file_name: str = ""
    is_folder_of: Callable[[Path], bool] = lambda path: False
    base: Callable[..., PreTrainedModel] = _never
    read: Callable[..., Adapter] = _never


FORMATS: Mapping[str, AdapterFormat] = MappingProxyType(
    {
        form.name: form
        for form in (
            AdapterFormat(
                "peft",
                export_peft,
                is_folder_of=lambda path: (path / CONFIG_NAME).is_file() and foreign(path) is None,
                base=base_for,
                read=import_peft,
            ),
            AdapterFormat(
                "mlx",
                export_mlx,
                is_folder_of=lambda path: foreign(path) is MLX,
                base=lambda path, name: load_as(name, CAUSAL_LM.auto),
                read=import_mlx,
            ),
            AdapterFormat("gguf", export_gguf, file_name="adapter.gguf"),
        )
    }
)


def format_of(folder: Path) -> AdapterFormat:
    """The format of an adapter's folder. Raises FormatError, with what the path is instead."""
    found = next((form for form in FORMATS.values() if form.is_folder_of(folder)), None)
    if found is None:
        raise FormatError(diagnosis(folder, "an adapter's folder"))
    return found


def base_of(adapter: Adapter, name: str | None = None) -> PreTrainedModel | None:
    """The base of an adapter without weights, None where its configuration is not on this machine.

    name: the base, where it is not the one that the adapter names. With weights where the basis is computed from them.
    """
    own = adapter.origin.get(CLASS, "")
    task = TASKS.get(adapter.origin.get(TASK, ""), SEQ_CLS if adapter.labels else CAUSAL_LM)
    base = name or adapter.model
    kind = OWN_CLASSES.get(own, own) or task.auto
    if base and adapter.layout.method.reads_base:
        return load_as(base, kind)
    return skeleton(base, kind) if base else None
