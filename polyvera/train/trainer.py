"""train: a recipe becomes an adapter."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import extract
from polyvera.adapter.route import route
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.data.batching import Collator
from polyvera.data.encoding import Encoded
from polyvera.data.tables import Table
from polyvera.errors import RecipeError
from polyvera.evaluate.evaluate import evaluate
from polyvera.model.answer import Meaning
from polyvera.model.load import Base, place
from polyvera.store.reference import AdapterRef
from polyvera.train import checkpoint
from polyvera.train.budget import Allocator, compacted, schedule
from polyvera.train.destination import check_folder, check_store, put_or_keep
from polyvera.train.fleet.learning_rate import LearningRate, kept_rate, solo_rate
from polyvera.train.head_unit import as_learned, begin, end, in_unit
from polyvera.train.loss_curve import History, draw
from polyvera.train.preparation import (
    adapted,
    check_base,
    check_head_lr,
    check_loads,
    check_start,
    encode_tables,
    loaded,
    meaning_in,
    pinned,
    registry_of,
    said,
)
from polyvera.train.recipe import Recipe
from polyvera.train.rounding import NUM_ROUNDING_ROWS, rounded, rounds, without_pruned
from polyvera.train.schedule import seed_everything
from polyvera.train.tell import Tell, tell_rows, to_nobody, to_stderr
from polyvera.train.warm_start import check_begin, warm_start

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from polyvera.train.callbacks import KeepBest
    from polyvera.train.hf_trainer import AdapterTrainer

BEST = "best.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    adapter: as it is stored, which is what was scored; None after full fine-tuning, whose result is base.model itself.
    base: the model, bare again, and its tokenizer. ref: what the adapter was published as, None without a recipe.name.
    labels: names of the classes, in the order of the outputs. rows, held_out: the training and validation rows, with
    those that were shortened or skipped. rate: the learning rate, and how it was chosen.
    paths: files of the run by name ('curve', 'history', 'model').
    """

    adapter: Adapter | None
    base: Base
    scores: Mapping[str, float]
    history: History
    rows: Encoded
    held_out: Encoded | None
    labels: tuple[str, ...]
    num_trained: int
    num_params: int
    num_steps: int
    seconds: float
    rate: LearningRate
    ref: AdapterRef | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)


def train(
    recipe: Recipe,
    *,
    base: Base | None = None,
    start: Adapter | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Trains what the recipe says, and publishes the adapter where the recipe names it.

    recipe: every choice of the run; recipe.name, where given, is what the adapter is published under in recipe.store
        (without a store: in that of POLYVERA_STORE, else 'adapters'). A recipe with fleet=True is train_fleet()'s.
    base: a model that is loaded already, instead of recipe.model; it is bare again afterwards (full fine-tuning changes
        it).
    start: the adapter to begin from, instead of recipe.init_from.
    resume: goes on from the last whole checkpoint in recipe.output, to the same result bit for bit on a CPU.
    progress: shows a bar, or lines where the output is no terminal.
    callbacks: of transformers' Trainer.

    Raises RecipeError, DataError, TargetError or another PolyveraError before the first step.
    """
    if recipe.fleet:
        raise RecipeError("fleet=True trains an adapter for every tenant: call train_fleet(recipe)")
    check_base(recipe, base)
    check_start(recipe, start)
    _check_destination(recipe, resume)
    seed_everything(recipe.run_seed)
    start = start or warm_start(recipe, registry_of(recipe))
    with pinned(recipe) as own:
        return _trained(own, base, start, resume, progress, callbacks)


def _trained(
    recipe: Recipe,
    base: Base | None,
    start: Adapter | None,
    resume: bool,
    progress: bool,
    callbacks: Sequence[TrainerCallback],
) -> TrainResult:
    from polyvera.train.hf_trainer import AdapterTrainer, arguments, columns_of  # seconds, that importing train() saves

    started = time.monotonic()
    tables, base = loaded(recipe, base)
    tell = to_stderr if progress and _is_first_process() else to_nobody
    tell_rows(tables, base.tokenizer, tell)
    rows, held_out = encode_tables(recipe, tables, base)
    rate = _rate(recipe, base, rows, held_out, start, resume, tell)
    tell(rate.text)
    asked, recipe = recipe, recipe.replaced(lr=rate.lr)
    num_params = base.model.num_parameters()
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(recipe))
        args = arguments(recipe, folder, len(rows))
        model: Any = place(base, str(args.device)).model
        bank = stack.enter_context(adapted(recipe, base))
        slot = BASE_SLOT if bank is None else bank.first
        check_begin(start, base.model, bank)
        begin(bank, slot, base, rows.span, start)
        heads, collate = _head_names(recipe, base, bank), Collator.of(model, base.tokenizer)
        trainer = AdapterTrainer(recipe, model, bank, rows, held_out, args, collate, heads)
        best, allocator = _watched(trainer, folder, progress, callbacks)
        at = _begin(folder, asked, rows, fingerprint(model), resume)
        with route(slot):
            _run(trainer, at, best)
        history = History(*(columns_of(trainer.state.log_history, name) for name in ("loss", "eval_loss")))
        scores = {"train_loss": history.recent()} | ({} if best is None else {"eval_loss": best.loss})
        trainer.check_trained([loss for _, loss in history.training], slot)
        exact = _adapter(recipe, trainer, allocator, tables.training)
        meaning = meaning_in(recipe, tables.training.task, tables.training.labels)
        scores |= _scores(base, trainer, held_out, tables.test, slot, meaning)
        exact = None if exact is None else replace(exact, scores=scores)
        adapter = None if exact is None else rounded(exact, recipe.stored)
        if adapter is not None and base.untrained:
            check_loads(recipe, base, adapter, rows, slot)
        return TrainResult(
            adapter=adapter,
            base=base,
            scores=scores,
            history=history,
            rows=rows,
            held_out=held_out,
            labels=tables.training.labels,
            num_trained=_num_trained(trainer),
            num_params=num_params,
            num_steps=trainer.state.global_step,
            seconds=time.monotonic() - started,
            rate=rate,
            ref=_published(recipe, exact, trainer.is_world_process_zero()),
            ranks={} if allocator is None else allocator.ranks,
            paths=_written(recipe, base, history, trainer.is_world_process_zero()),
        )


def _num_trained(trainer: AdapterTrainer) -> int:
    whole = sum(p.numel() for p in checkpoint.trained(trainer.whole).values())
    return whole if trainer.bank is None else trainer.bank.num_trained


def _scores(
    base: Base, trainer: AdapterTrainer, held_out: Encoded | None, test: Table | None, slot: int, meaning: Meaning
) -> Mapping[str, float]:
    """What becomes of the losses when the numbers are stored, and the scores on the test rows."""
    with route(slot):
        scores = _round(trainer, held_out)
    end(trainer.bank, slot, base, trainer.rows.span)
    if test is None:
        return scores
    found = evaluate(base.model, base.tokenizer, test, slot, meanings={slot: meaning})
    return {**scores, **found.scores}


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _check_destination(recipe: Recipe, resume: bool) -> None:
    """Raises RecipeError or StoreError where the results could not be kept."""
    if recipe.folder is None and resume:
        raise RecipeError("resume needs output: the folder of the run to go on with")
    if recipe.folder is not None:
        check_folder(recipe.folder)
        checkpoint.check_new(recipe.folder, resume=resume)
    if recipe.name is not None:
        check_store(registry_of(recipe))


def _rate(
    recipe: Recipe,
    base: Base,
    rows: Encoded,
    held_out: Encoded | None,
    start: Adapter | None,
    resume: bool,
    tell: Tell,
) -> LearningRate:
    """The learning rate: given, of the run that is resumed, or chosen now."""
    resumed = resume and recipe.folder is not None and checkpoint.last(recipe.folder) is not None
    return kept_rate(recipe.folder, lambda: solo_rate(recipe, base, rows, held_out, start, tell), resume=resumed)


def _published(recipe: Recipe, adapter: Adapter | None, main: bool) -> AdapterRef | None:
    if adapter is None or recipe.name is None or not main:
        return None
    registry = registry_of(recipe)
    return put_or_keep(registry, recipe.name, adapter, alias=recipe.alias, dtype=recipe.stored, folder=recipe.folder)


def _round(trainer: AdapterTrainer, held_out: Encoded | None) -> dict[str, float]:
    """Puts the numbers as they will be stored in the exact ones' place; what that does to losses, in nats.

    rounding_loss: by how much the mean loss of the first training rows rises.
    """
    bank, dtype, span = trainer.bank, trainer.recipe.stored, trainer.rows.span
    if bank is None or not rounds(dtype):
        return {}
    rows = trainer.rows.rows[:NUM_ROUNDING_ROWS]
    before = trainer.mean_loss(rows)
    again = rounded(in_unit(without_pruned(bank.extract(bank.first)), span), dtype)
    bank.put(bank.first, as_learned(again, span))
    found = {"rounding_loss": trainer.mean_loss(rows) - before}
    return found if held_out is None else found | {"eval_loss": trainer.mean_loss(held_out.rows)}


@contextmanager
def _folder(recipe: Recipe) -> Iterator[Path]:
    if recipe.folder is not None:
        yield recipe.folder
    else:
        with tempfile.TemporaryDirectory(prefix="polyvera-") as folder:
            yield Path(folder)


def _begin(folder: Path, recipe: Recipe, rows: Encoded, base: str, resume: bool) -> Path | None:
    if recipe.output is None:
        return None
    if not _is_first_process():  # which opens the folder for all
        return checkpoint.last(folder) if resume else None
    return checkpoint.begin(folder, recipe, rows, base, resume=resume)


def _head_names(recipe: Recipe, base: Base, bank: Bank | None) -> set[str]:
    """The parameters that take the head's learning rate. Raises RecipeError where there is a head_lr and no head."""
    model = base.model
    heads = [model.get_submodule(n) for n in base.head] if bank is None else list(bank.heads.values())
    owned = {id(p) for head in heads for p in head.parameters()}
    check_head_lr(recipe, model, has_head=bool(owned))
    return {name for name, p in model.named_parameters() if id(p) in owned}


def _watched(
    trainer: AdapterTrainer, folder: Path, progress: bool, callbacks: Sequence[TrainerCallback]
) -> tuple[KeepBest | None, Allocator | None]:
    from polyvera.train.callbacks import KeepBest, Pruning, Shown

    recipe, best, allocator = trainer.recipe, None, None
    if recipe.budget is not None and trainer.bank is not None:
        plan = schedule(recipe.budget, trainer.bank, trainer.args.max_steps)
        allocator = Allocator(trainer.bank, plan, recipe.budget.beta1, recipe.budget.beta2)
        trainer.watch(Pruning(allocator), allocator)
    if recipe.validation is not None:
        best = KeepBest(
            trainer.whole, folder / BEST, recipe.early_stopping, 0 if allocator is None else allocator.schedule.freezes
        )
        trainer.watch(best, best)
    if progress and trainer.is_world_process_zero():
        trainer.watch(Shown())
    for callback in callbacks:
        trainer.watch(callback)
    return best, allocator


def _run(trainer: AdapterTrainer, at: Path | None, best: KeepBest | None) -> None:
    """Trains from the start or from a checkpoint; leaves the best numbers in the model."""
    if at is None:
        trainer.train()
    else:
        trainer.restore(at)
        if trainer.state.global_step < trainer.args.max_steps and not (best is not None and best.stops):
            trainer.train(resume_from_checkpoint=str(at))
    trainer.accelerator.wait_for_everyone()
    if best is not None and best.path.exists():
        checkpoint.read_into(best.path, trainer.whole)


def _adapter(recipe: Recipe, trainer: AdapterTrainer, allocator: Allocator | None, table: Table) -> Adapter | None:
    if trainer.bank is None:
        return None
    adapter = in_unit(extract(trainer.bank, trainer.bank.first, trainer.whole), trainer.rows.span)
    adapter = adapter if allocator is None else compacted(adapter)
    return said(recipe, adapter, table.kind, table.labels)


def _written(recipe: Recipe, base: Base, history: History, main: bool) -> dict[str, Path]:
    """The run's files beside its checkpoints."""
    folder = recipe.folder
    if folder is None or not main:
        return {}
    what = "full fine-tuning" if recipe.full else recipe.method
    paths = {
        "curve": draw(history, folder / "curve.png", f"{what} of {recipe.model}"),
        "history": folder / "history.json",
    }
    paths["history"].write_text(json.dumps({"training": history.training, "validation": history.validation}))
    if recipe.full:
        paths["model"] = folder / "model"
        base.model.save_pretrained(paths["model"])
        base.tokenizer.save_pretrained(paths["model"])
    return paths
