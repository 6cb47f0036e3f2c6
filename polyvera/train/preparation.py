"""What a run needs before its first step: tables, class names, tokens, and the base with a bank in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from polyvera.adapter.bank import Bank
from polyvera.adapter.inject import banks_of, eject, inject
from polyvera.adapter.route import checkpoint_context
from polyvera.adapter.targets import find_head
from polyvera.data.encoding import Encoded, encode
from polyvera.data.tables import Table
from polyvera.errors import RecipeError
from polyvera.evaluate.evaluate import measured
from polyvera.model.config import (
    LABEL,
    are_placeholders,
    context_length,
    labels_of,
    set_labels,
    text_config,
    vocabulary_size,
)
from polyvera.model.load import Base
from polyvera.model.rms_norm import fused_norms
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tables, only_tenant

MAX_LENGTH = 512


def read_tables(recipe: Recipe) -> Tables:
    """The recipe's data, its validation (a file, or a part of the data) and its test rows. Raises DataError."""
    return only_tenant(recipe).tables(recipe)


def class_names(base: Base, table: Table) -> tuple[str, ...]:
    """The classes of the table in the order of the model's outputs, which get these names. Raises RecipeError."""
    if table.kind != LABEL:
        return ()
    known = labels_of(base.model.config)
    if set(known) == set(table.labels):
        return known
    if len(known) != len(table.labels) or not are_placeholders(known):
        raise RecipeError(
            f"{table.source} has the classes {', '.join(table.labels)}, and the model's outputs are "
            f"{', '.join(known)}: load it with load_base(..., labels=...)"
        )
    set_labels(base.model.config, table.labels)
    return table.labels


def encode_tables(recipe: Recipe, tables: Tables, base: Base) -> tuple[Encoded, Encoded | None]:
    """The tokens of the training and the validation rows. Raises DataError or RecipeError."""
    length = row_length(recipe, context_length(base.model, base.tokenizer))

    def encoded(table: Table) -> Encoded:
        return encode(
            table,
            base.tokenizer,
            length,
            num_tokens=vocabulary_size(base.model),
            turns=recipe.turns,
            too_long=recipe.too_long,
        )

    if tables.test is not None:
        measured(base.model, base.tokenizer, tables.test)
    return encoded(tables.training), None if tables.validation is None else encoded(tables.validation)


def row_length(recipe: Recipe, limit: int | None) -> int:
    """The most tokens of a row. limit: what the model reads, None where unknown. Raises RecipeError beyond it."""
    if limit is not None and (recipe.max_length or 0) > limit:
        raise RecipeError(f"max_length={recipe.max_length} is more than the {limit} tokens that {recipe.model} reads")
    return recipe.max_length or min(MAX_LENGTH, limit or MAX_LENGTH)


@contextmanager
def adapted(recipe: Recipe, base: Base, num_slots: int = 1) -> Iterator[Bank | None]:
    """The base with a bank in it (every parameter trained, for full fine-tuning), bare again afterwards."""
    model: Any = base.model
    if banks_of(model):
        raise RecipeError("the base model holds adapters already: train on a bare one, eject(model) makes it so")
    if recipe.gradient_checkpointing:
        options = {"use_reentrant": False, "context_fn": checkpoint_context}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    config = text_config(model.config)
    use_cache = getattr(config, "use_cache", None)  # encoders have none
    try:
        with fused_norms(model):
            if recipe.full:
                model.requires_grad_(True)
                yield None
            else:
                yield inject(model, recipe.spec(find_head(model)), num_slots)
    finally:
        eject(model)
        if use_cache is not None:
            config.use_cache = use_cache
        model.eval()
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_disable()
