"""engine_for: the engine that fits a base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyvera.engine.adapter_loader import Observe
from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.generation.generator import Generator
from polyvera.engine.limits import Limits
from polyvera.model.config import CLASSIFICATION, ENCODER, TOKEN_CLASSIFICATION, kind_of
from polyvera.store.registry import Registry

if TYPE_CHECKING:
    from polyvera.model.load import Base


def engine_for(
    base: Base,
    registry: Registry | None = None,
    limits: Limits | None = None,
    observe: Observe = lambda name, seconds: None,
) -> Generator | Embedder:
    """The engine for a base model, not started yet: a Generator if it generates text, else an Embedder.

    base: as load_base(..., task='auto') gives it.
    registry: where adapters are loaded from; None serves the base alone.
    limits: rows, context, slots and memory; None takes the defaults.
    observe: called with the name and the seconds of what the engine measures.

    Raises ServeError for limits that the model does not allow.
    """
    reads_only = kind_of(base.model) in (CLASSIFICATION, TOKEN_CLASSIFICATION, ENCODER)
    return (Embedder if reads_only else Generator)(base.model, base.tokenizer, registry, limits, observe)
