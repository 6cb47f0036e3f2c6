"""unread_class: the class of a model that an adapter is for and that no task asks, such as one of spans of a text."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from polyvera.errors import SpecError

if TYPE_CHECKING:
    from polyvera.adapter.adapter import Adapter

CLASS = "base_model_class"  # in an adapter's origin
# transformers' tables of the models that a task asks, and of those that none does.
READ = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "IMAGE_TEXT_TO_TEXT")
UNREAD = ("QUESTION_ANSWERING", "MASKED_LM", "MULTIPLE_CHOICE", "NEXT_SENTENCE_PREDICTION", "PRETRAINING")
BARE_ENCODER = "EncoderModel"  # how the half of an encoder-decoder ends that it reads with


def unread_class(adapter: Adapter) -> str:
    """The class of transformers that the adapter's base was, where no task asks such a model; else ''."""
    name = adapter.origin.get(CLASS, "")
    return name if name in _unread() or name.endswith(BARE_ENCODER) or _is_bare_pair(name) else ""


def is_read(adapter: Adapter) -> bool:
    """Whether a task asks models like the adapter's base; of a whole encoder without a head it asks vectors."""
    kind = unread_class(adapter)
    return not kind or (kind in _unread() and not adapter.layout.head)


def check_read(adapter: Adapter, name: str) -> None:
    """Raises SpecError for an adapter, called so, whose answers nothing here asks for."""
    kind = unread_class(adapter)
    if not is_read(adapter):
        raise SpecError(
            f"{name} is an adapter of {kind}, which answers none of the tasks here; it can be exported as it "
            f"came, and merged into a plain checkpoint that transformers loads as {kind}"
        )


@cache
def _unread() -> frozenset[str]:
    return frozenset(_classes(UNREAD)) - frozenset(_classes(READ))


def _classes(tables: tuple[str, ...]) -> list[str]:
    from transformers.models.auto import modeling_auto as auto

    found = [getattr(auto, f"MODEL_FOR_{table}_MAPPING_NAMES").values() for table in tables]
    return [one for names in found for name in names for one in ((name,) if isinstance(name, str) else name)]


@cache
def _is_bare_pair(name: str) -> bool:
    """Whether a class is an encoder and a decoder without an output layer, such as T5Model."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if name not in auto.MODEL_MAPPING_NAMES.values():
        return False
    return bool(getattr(getattr(transformers, name).config_class, "is_encoder_decoder", False))
