"""What a run needs before its first step: tables, class names, tokens, and the base with a bank in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.base_layer import keep_readable, layer_kind, rounds_inputs
from polyvera.adapter.basis import Basis
from polyvera.adapter.inject import banks_of, eject, inject, load
from polyvera.adapter.route import checkpoint_context, route
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import WORDS, base_layers, find_sites
from polyvera.data.batching import Collator
from polyvera.data.encoding import Encoded, encode
from polyvera.data.row_form import FORMS
from polyvera.data.tables import Table
from polyvera.errors import DataError, PolyveraError, RecipeError, TargetError
from polyvera.evaluate.evaluate import measured
from polyvera.model.answer import Meaning, meaning_of
from polyvera.model.config import (
    are_placeholders,
    context_length,
    labels_of,
    set_labels,
    text_config,
    vocabulary_size,
)
from polyvera.model.frozen_head import HEADS, LabelReader, frozen_head, with_head
from polyvera.model.inference import evaluating
from polyvera.model.layer_gradients import check_shortest, probe_layers
from polyvera.model.load import AUTO_DTYPE, Base, load_base
from polyvera.model.rms_norm import fused_norms
from polyvera.model.task import THRESHOLD, Task
from polyvera.store.opened import opened
from polyvera.store.registry import Registry
from polyvera.train.head_unit import span_of
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tables, only_tenant

MAX_LENGTH = 512
CHAT, TURNS, TOO_LONG = "chat", "all", "error"


def read_tables(recipe: Recipe) -> Tables:
    """The recipe's data, its validation (a file, or a part of the data) and its test rows. Raises DataError."""
    return only_tenant(recipe).tables(recipe)


def base_for(recipe: Recipe, table: Table, base: Base | None = None) -> Base:
    """The recipe's model for the task of these rows, where none is given."""
    return base or load_base(recipe.model, task=table.task, dtype=recipe.dtype, labels=table.labels)


def loaded(recipe: Recipe, base: Base | None = None) -> tuple[Tables, Base]:
    """The rows, with their classes in the order of the model's outputs, and the model, where none is given."""
    tables = read_tables(recipe)
    base = base_for(recipe, tables.training, base)
    tables = tables.suited(base.model)
    return tables.labelled(class_names(base, tables.training)), base


def class_names(base: Base, table: Table) -> tuple[str, ...]:
    """The classes of the table in the order of the model's outputs, which get these names. Raises RecipeError."""
    if not table.row.has_head:
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
    """The tokens of the training and the validation rows, at most row_length() each. Raises DataError, RecipeError."""
    length = row_length(recipe, context_length(base.model, base.tokenizer))

    meaning_in(recipe, tables.training.task, tables.training.labels)
    _check_frozen_head(recipe, tables.training, base)
    span = span_of(recipe, base, tables.training)
    if recipe.full and tables.training.row.compares:
        raise RecipeError("full=True leaves no base to compare with: train an adapter on preferences")
    if recipe.turns != TURNS and tables.training.kind != CHAT:
        raise RecipeError(f"turns={recipe.turns!r} has no effect: the rows of {tables.training.source} have no turns")
    if recipe.too_long != TOO_LONG and not (tables.training.row.writes or tables.training.row.compares):
        raise RecipeError(
            f"too_long={recipe.too_long!r} has no effect: the rows of {tables.training.source} have no answers to be "
            "too long, and their texts are cut"
        )

    def encoded(table: Table) -> Encoded:
        return encode(
            replace(table, span=span),
            base.tokenizer,
            length,
            num_tokens=vocabulary_size(base.model),
            turns=recipe.turns,
            too_long=recipe.too_long,
        )

    if tables.test is not None:
        measured(base.model, base.tokenizer, tables.test)
    rows, held_out = encoded(tables.training), None if tables.validation is None else encoded(tables.validation)
    check_shortest(base.model, min(length for part in (rows, held_out) if part for length in part.lengths))
    return rows, held_out


def _check_frozen_head(recipe: Recipe, table: Table, base: Base) -> None:
    """Raises RecipeError for rows that need no head, DataError for other classes than those the head is made of."""
    word = None if recipe.full else recipe.spec(base.head).frozen_head
    known = labels_of(base.model.config)
    if word is not None and not table.row.has_head:
        raise RecipeError(
            f"head={word!r} has no effect: the rows of {table.source} have no labels for a head to answer"
        )
    if word is not None and HEADS[word].reads_names and set(known) != set(table.labels):
        raise DataError(
            f"head={word!r} makes one head for all tenants, of the names {', '.join(known)}, and {table.source} has "
            f"{', '.join(table.labels)}: take head='random', or train it alone"
        )


def row_length(recipe: Recipe, limit: int | None) -> int:
    """The most tokens of a row. limit: what the model reads, None where unknown. Raises RecipeError beyond it."""
    if limit is not None and (recipe.max_length or 0) > limit:
        raise RecipeError(f"max_length={recipe.max_length} is more than the {limit} tokens that {recipe.model} reads")
    return recipe.max_length or min(MAX_LENGTH, limit or MAX_LENGTH)


def meaning_in(recipe: Recipe, task: str, labels: tuple[str, ...]) -> Meaning:
    """What the outputs of a head that the recipe trains stand for. Raises RecipeError for a threshold of no use."""
    found = Meaning(task, labels, recipe.threshold or THRESHOLD)
    if recipe.threshold is not None and not found.row.has_threshold:
        raise RecipeError(f"threshold={recipe.threshold} has no effect: the rows are for {task}, not multi-label")
    return found


def said(recipe: Recipe, adapter: Adapter, kind: str, labels: tuple[str, ...]) -> Adapter:
    """The adapter, which then says what it is of and for, and how it was trained. kind: of its rows."""
    form = FORMS[kind]
    task = form.task
    meaning = meaning_in(recipe, task, labels)
    own = "" if task == meaning_of(replace(adapter, labels=labels, task="")).task else task
    adapter = replace(adapter, lr=recipe.learning_rate, prompt_form=form.prompt_form)
    return replace(adapter, model=recipe.model, labels=labels, task=own, threshold=meaning.threshold)


def registry_of(recipe: Recipe) -> Registry:
    """Where the recipe's adapters rest; without a store of its own, in that of POLYVERA_STORE, else 'adapters'."""
    return opened(recipe.store if "store" in recipe.model_fields_set else None)


def check_base(recipe: Recipe, base: Base | None) -> None:
    """Raises RecipeError for a base that is loaded already in another dtype than the recipe asks for."""
    if base is None or recipe.dtype == AUTO_DTYPE:
        return
    own = str(base.model.dtype).removeprefix("torch.")
    if own != recipe.dtype:
        raise RecipeError(f"dtype={recipe.dtype!r}, and the base that was given is in {own}: leave dtype out")


def check_start(recipe: Recipe, start: Adapter | None) -> None:
    """Raises RecipeError for an adapter to begin from where the recipe names another, or trains no adapter."""
    if start is not None and recipe.init_from is not None:
        raise RecipeError(f"start and init_from={recipe.init_from!r} both say where to begin: give one of them")
    if start is not None and recipe.full:
        raise RecipeError("full=True trains every parameter, so start would have no effect: leave it out")


def check_head_lr(recipe: Recipe, model: nn.Module, *, has_head: bool) -> None:
    """Raises RecipeError where there is a head_lr and no head."""
    if recipe.head_lr is not None and not has_head:
        raise RecipeError(f"head_lr={recipe.head_lr} has no effect: {type(model).__name__} has no head that is trained")


def made_basis(recipe: Recipe) -> Basis | None:
    """The made basis that a recipe names, from its store. Raises NotFoundError, or RecipeError for another rank."""
    if recipe.basis is None:
        return None
    basis, rank = registry_of(recipe).bases.get(recipe.basis), recipe.spec().common_rank
    if basis.key.rank != rank:
        raise RecipeError(f"basis={recipe.basis!r} has rank {basis.key.rank}, not {rank}: give rank={basis.key.rank}")
    return basis


@contextmanager
def pinned(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe with its made basis, if any, by its whole sha256; the basis is at hand meanwhile. Raises as that."""
    basis = made_basis(recipe)
    yield recipe if basis is None else recipe.replaced(basis=basis.sha256)
    del basis


@contextmanager
def pinned_for_many(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe of many runs with its made basis, if any, by sha256 and of that one's rank, and without a store.

    The basis is at hand meanwhile. Raises NotFoundError, DamagedFileError.
    """
    basis = None if recipe.basis is None else registry_of(recipe).bases.get(recipe.basis)
    if basis is None:
        yield recipe
    else:
        kept = {name: value for name, value in recipe.given().items() if name not in ("store", "basis")}
        yield Recipe(**kept, basis=basis.sha256, rank=basis.key.rank)
    del basis


@contextmanager
def adapted(recipe: Recipe, base: Base, num_slots: int = 1) -> Iterator[Bank | None]:
    """The base with a bank in it (every parameter trained, for full fine-tuning), bare again afterwards.

    Raises RecipeError for a base that has adapters in it already.
    """
    with pinned(recipe) as own, _adapted(own, base, num_slots) as bank:
        yield bank


@contextmanager
def _adapted(recipe: Recipe, base: Base, num_slots: int) -> Iterator[Bank | None]:
    model: Any = base.model
    if banks_of(model):
        raise RecipeError("the base model has adapters in it: call eject(model) first")
    keep_readable(model)
    if recipe.gradient_checkpointing:
        options = {"use_reentrant": False, "context_fn": checkpoint_context}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    spec, written = (None, ()) if recipe.full else spec_for(recipe, base)
    config = text_config(model.config)
    use_cache = getattr(config, "use_cache", None)  # encoders have none
    try:
        with fused_norms(model), frozen_head(base, spec):
            if spec is None:
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_(base.trained is None or name in base.trained)
                yield None
            else:
                layers, bank = base_layers(model), inject(model, spec, num_slots)
                for name in written:
                    model.get_submodule(layer_kind(layers[name]).place(name)).register_forward_hook(_copied)
                yield bank
    finally:
        eject(model)
        if use_cache is not None:
            config.use_cache = use_cache
        model.eval()
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_disable()


def _copied(layer: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
    """A copy for a model that writes over a layer's output, which the backward pass may need."""
    return out.clone()


def spec_for(recipe: Recipe, base: Base) -> tuple[AdapterSpec, tuple[str, ...]]:
    """The adapter that the recipe asks for on this base, without layers that its answers do not depend on.

    Also the layers whose output the model writes over. Raises TargetError for a layer without use that the recipe
    names, RecipeError for a model that reads no rows of tokens, or whose layers pass no gradient on.
    """
    spec = on_made(recipe.spec(base.head), made_basis(recipe))
    found = probe_layers(base.model, tuple(find_sites(base.model, spec)))
    if found.ends:
        raise RecipeError(
            f"{found.ends[0]} is quantized in a form that passes no gradient on, so the layers before it cannot be "
            "trained: quantize the weights alone, or train on the unquantized base"
        )
    if found.dead and not _in_words(spec.targets):
        raise TargetError(
            f"targets={spec.targets!r}: {found.dead[0]} would never be trained, since no answer of "
            f"{type(base.model).__name__} depends on it; leave it out with exclude"
        )
    return replace(spec, exclude=(*spec.exclude, *found.dead)), found.written


def on_made(spec: AdapterSpec, basis: Basis | None) -> AdapterSpec:
    """The spec on a made basis, if any."""
    if basis is None:
        return spec
    return replace(spec, init=basis.sha256, in_max=basis.key.in_max, out_max=basis.key.out_max)


def check_mixes(base: Base) -> None:
    """Raises RecipeError for a model in which the rows of a batch change each other, as no tenant's must."""
    for name, layer in base_layers(base.model).items():
        if rounds_inputs(layer):
            raise RecipeError(
                f"{name} rounds what it reads by all rows of a batch, so tenants in one batch would change each other: "
                "quantize the weights alone (4 bits of bitsandbytes), or train each tenant alone"
            )


def check_router(base: Base, task: Task) -> None:
    """Raises RecipeError for a model that adds its routers' loss to a batch's, which no tenant's rows have alone."""
    if task.has_own_loss and getattr(text_config(base.model.config), "output_router_logits", False):
        raise RecipeError(
            f"{type(base.model).__name__} adds its routers' auxiliary loss to that of a whole batch (its config.json "
            "has output_router_logits), and a batch of several tenants has no such loss for each: set "
            "output_router_logits to false there, or train each tenant alone"
        )


def _in_words(targets: str | tuple[str, ...]) -> bool:
    """Whether the layers are chosen by what they are, and none by its name."""
    return set((targets,) if isinstance(targets, str) else targets) <= set(WORDS)


def check_loads(recipe: Recipe, base: Base, adapter: Adapter, rows: Encoded, slot: int) -> None:
    """Raises RecipeError where the adapter answers otherwise in a base that is loaded once more.

    base: with the adapter in that slot.
    """
    again = load_base(recipe.model, task=meaning_of(adapter).task, dtype=recipe.dtype, labels=adapter.labels)
    batch = Collator.of(base.model, base.tokenizer)(rows.rows[:2])
    batch.pop("labels")
    try:
        [own] = load(again.model, with_head(adapter, LabelReader(again.model, again.tokenizer)))
    except PolyveraError as error:
        raise RecipeError(f"the adapter does not fit {recipe.model} after that was reloaded: {error}") from error
    with evaluating(base.model), route(slot):
        expected = base.model(**{k: t.to(base.model.device) for k, t in batch.items()}).logits.cpu()
    with evaluating(again.model), route(own):
        found = again.model(**batch).logits
    if not expected.isfinite().all() or not torch.allclose(
        found.float(), expected.float(), rtol=1e-2, atol=1e-2 * float(expected.abs().max())
    ):
        raise RecipeError(f"{recipe.model} answers differently with this adapter after it was reloaded: not published")
