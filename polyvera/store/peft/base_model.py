"""base_for: the base model that a PEFT folder is for, as the class that the folder names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import AutoConfig

from polyvera.model.config import ENCODER_DECODER, OTHER, kind_of
from polyvera.model.load import load_as, load_base, locate
from polyvera.model.task import LABEL, PAIRS
from polyvera.model.unread import BARE_ENCODER
from polyvera.store.foreign import CONFIG_NAME
from polyvera.store.peft.card import POOLED
from polyvera.store.peft.config import PeftConfig, read_config
from polyvera.store.peft.reader import check_folder, opened_weights
from polyvera.store.peft.tasks import TASKS, PeftTask, task_of_class
from polyvera.store.peft.tensor_names import canonical

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

AUTO = "auto"
BARE = TASKS["FEATURE_EXTRACTION"]


def base_for(folder: Path, name: str, *, pickle: bool = False) -> PreTrainedModel:
    """The base of that name as the class of the folder's task, else of its auto_mapping, else as its own.

    A bare backbone is loaded as the model that polyvera uses it in. Raises FormatError for what is not a PEFT folder,
    SpecError for a choice that cannot be imported, all before the model is read; then RecipeError.
    """
    check_folder(folder, pickle=pickle)
    config = read_config(folder / CONFIG_NAME)
    task = TASKS.get(config.task_type or "")
    if config.base_class == POOLED:
        return load_base(name, task=LABEL, **_classes(folder, TASKS["SEQ_CLS"], config)).model
    named = task_of_class(config.base_class)
    if BARE in (task, named) or (task is None and not config.base_class):
        half = _half(folder, name)
        return load_as(name, half) if half else _own(name)
    kind = config.base_class if task is None else kind_of_task(task, name)
    return load_as(name, kind, **_classes(folder, task, config))


def kind_of_task(task: PeftTask, name: str) -> str:
    """The class that loads a base for a task: transformers' own for it, or the base's own where that knows no such.

    PEFT's task is a word that its user chose: models that also see are trained as CAUSAL_LM.
    """
    config = AutoConfig.from_pretrained(locate(name), trust_remote_code=False)
    auto: Any = getattr(transformers, task.auto)
    return task.auto if type(config) in auto._model_mapping else _architecture(config)


def num_classes_in(folder: Path, task: PeftTask) -> int | None:
    """The classes of the head in a folder."""
    with opened_weights(folder) as file:
        return task.num_classes({canonical(key): stored.shape for key, stored in file.items()})


def _classes(folder: Path, task: PeftTask | None, config: PeftConfig) -> dict[str, Any]:
    """What a classifier's configuration has to say for the folder's head to fit."""
    num = num_classes_in(folder, task) if task is not None and task.heads else None
    return {} if num is None else {"num_labels": num}


def _half(folder: Path, name: str) -> str:
    """The class of an encoder-decoder's encoder alone, such as T5EncoderModel, where the folder is for no more; or ''.

    It is where the base is saved as such, or where no tensor in the folder is of a decoder.
    """
    config = AutoConfig.from_pretrained(locate(name), trust_remote_code=False)
    own = _architecture(config)
    if own.endswith(BARE_ENCODER):
        return own
    half = next(iter(_classes_of(config)), "").removesuffix("Model") + BARE_ENCODER
    if not config.is_encoder_decoder or not hasattr(transformers, half):
        return ""
    with opened_weights(folder) as file:
        return "" if any("decoder" in canonical(key).split(".") for key in file) else half


def _classes_of(config: PreTrainedConfig) -> list[str]:
    found: Any = transformers.MODEL_MAPPING.get(type(config), ())
    return [kind.__name__ for kind in (found if isinstance(found, tuple) else (found,))]


def _own(name: str) -> PreTrainedModel:
    """The model as polyvera itself uses it, or as its configuration names it where polyvera has no use for it."""
    config = AutoConfig.from_pretrained(locate(name), trust_remote_code=False)
    if kind_of(config) in (OTHER, ENCODER_DECODER):
        return load_as(name, _architecture(config))
    return load_base(name, task=PAIRS if task_of_class(_architecture(config)) is BARE else AUTO).model


def _architecture(config: PreTrainedConfig) -> str:
    return next(iter(config.architectures or ()), BARE.auto)
