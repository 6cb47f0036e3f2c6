"""Session: a base model with the adapters that a verb named, each in its slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvera.errors import DamagedFileError, FingerprintError, RecipeError
from polyvera.model.prompt import TEMPLATE
from polyvera.model.task import LM
from polyvera.model.unread import check_read, is_read, unread_class
from polyvera.plan import bytes_text

if TYPE_CHECKING:
    from polyvera.adapter.adapter import Adapter
    from polyvera.data.tables import Table
    from polyvera.model.answer import Meaning
    from polyvera.model.load import Base
    from polyvera.store.file.codec import Header
    from polyvera.store.made_bases import BasisRef
    from polyvera.store.registry import Registry

BASE = "base"


@dataclass(frozen=True)
class Rows:
    """The rows that `eval` asks for. source: None where nobody named any. chat: None to ask as was trained."""

    source: str | None
    columns: Mapping[str, str]
    chat: bool | None
    limit: int | None
    batch_size: int

    def cut(self, table: Table) -> Table:
        """The first so many of a table."""
        return replace(table, examples=table.examples[: self.limit])


@dataclass(frozen=True)
class Session:
    """A loaded base and its adapters.

    names[i] is in slots[i], was trained on prompts of prompt_forms[i], and its head stands for meanings[i].
    """

    base: Base
    names: tuple[str, ...]
    slots: tuple[int, ...]
    prompt_forms: tuple[str, ...] = ()
    meanings: tuple[Meaning, ...] = ()

    @classmethod
    def open(
        cls,
        names: str | Sequence[str] | None,
        store: str,
        model: str | None,
        *,
        any_base: bool,
        dtype: str = "auto",
        bare: str = LM,
        asks: bool = True,
    ) -> Session:
        """Loads the adapters, then the base that they were trained on. Raises RecipeError where they differ in it.

        bare: the task that the base is loaded for where there is no adapter, as load_base() takes it. asks: whether
        somebody is to answer; if not, adapters of any class are taken. Raises SpecError as check_read().
        """
        from polyvera.adapter.inject import load
        from polyvera.model.answer import meaning_of
        from polyvera.model.frozen_head import LabelReader, with_head
        from polyvera.model.load import place
        from polyvera.store.registry import Registry

        names = [names] if isinstance(names, str) else list(names or [])
        registry = Registry(store)
        adapters = [registry.get(name) for name in names]
        if asks:
            for name, adapter in zip(names, adapters, strict=True):
                check_read(adapter, name)
        kind = "" if asks else unread_class(adapters[0])
        base = place(_base_for(adapters, model, kind, bare, dtype))
        reader = LabelReader(base.model, base.tokenizer)
        adapters = [with_head(adapter, reader) for adapter in adapters]
        try:
            slots = load(base.model, adapters, check_base=not any_base) if adapters else []
        except FingerprintError as error:  # in the words of the command line
            raise FingerprintError(str(error).replace("pass check_base=False", "give --any-base")) from error
        forms = tuple(adapter.prompt_form for adapter in adapters)
        return cls(base, tuple(names), tuple(slots), forms, tuple(map(meaning_of, adapters)))

    def evaluate(self, rows: Rows) -> dict[str, dict[str, float]]:
        """The scores of the base and of each adapter, rows of all in the same batches."""
        from polyvera.data.tables import read
        from polyvera.evaluate.evaluate import evaluate
        from polyvera.train.tell import to_stderr

        if rows.source is None:
            raise RecipeError("there are no rows to answer: give --data FILE")
        own = self._own_heads()
        task = next((meaning.task for meaning in (*self.meanings, *own) if not meaning.row.writes), None)
        chat = self._asks_by_template(rows.chat)
        table = rows.cut(read(rows.source, rows.columns, chat=chat, task=task))
        to_stderr(table.unread_text)
        self._check_kind(table, has_head=bool(self.names or own))
        model, tokenizer = self.base.model, self.base.tokenizer
        # A head that was never trained has nothing to say, so a classifier's base is left out.
        everyone = [*zip(self.names, self.slots, strict=True)] + (
            [] if self.names and not table.row.scores_base else [(BASE, 0)]
        )
        several = replace(table, examples=tuple(e for e in table.examples for _ in everyone))
        slots = [slot for _ in table.examples for _, slot in everyone]
        meanings = dict(zip(self.slots, self.meanings, strict=True))
        found = evaluate(model, tokenizer, several, slots, batch_size=rows.batch_size, meanings=meanings)
        return {name: found.of_slot(slot) for name, slot in everyone}

    def _own_heads(self) -> tuple[Meaning, ...]:
        """What the base's own head is for, where no adapter brings one and its files have one."""
        from polyvera.model.answer import trained_meaning
        from polyvera.model.config import kind_of
        from polyvera.model.load import WITH_HEAD

        if self.names or kind_of(self.base.model) not in WITH_HEAD:
            return ()
        own = trained_meaning(self.base.model)
        return (own,) if own.labels else ()

    def _check_kind(self, table: Table, *, has_head: bool) -> None:
        """Raises SpecError or RecipeError for rows that neither the base nor an adapter's head answers."""
        from polyvera.model.config import check_kind

        if not self.names and table.row.writes:
            check_kind(self.base.model.config, table.suited(self.base.model).row.kind)
        if table.row.has_head and not has_head:
            raise RecipeError(
                f"{table.source} has labels, and {type(self.base.model).__name__} has no trained head that answers "
                "them: name an adapter, or a model that has one"
            )

    def generate(
        self, prompts: Sequence[str], *, base: bool, chat: bool | None, seed: int, **settings: Any
    ) -> list[dict[str, str]]:
        """One row a prompt: its text, the base's answer and each adapter's, all generated in the same batches.

        chat: whether prompts go through the chat template; None for the form that the adapters were trained on.
        """
        from transformers import set_seed

        from polyvera.evaluate.generate import generate
        from polyvera.model.message import Message

        set_seed(seed)
        everyone = ([(BASE, 0)] if base else []) + [*zip(self.names, self.slots, strict=True)]
        if not everyone:
            raise RecipeError("nobody would answer: name an adapter, or leave --no-base out")
        is_chat = self._asks_by_template(chat)
        asked = [(Message("user", p),) if is_chat else p for p in prompts]
        answers = generate(
            self.base.model,
            self.base.tokenizer,
            [one for one in asked for _ in everyone],
            slots=[slot for _ in asked for _, slot in everyone],
            **settings,
        )
        size = len(everyone)
        names = [name for name, _ in everyone]
        return [
            {"prompt": prompt, **dict(zip(names, answers[i * size : (i + 1) * size], strict=True))}
            for i, prompt in enumerate(prompts)
        ]

    def _asks_by_template(self, chat: bool | None) -> bool:
        """Whether prompts go through the chat template. Raises RecipeError for adapters that were trained otherwise."""
        known = {prompt_form for prompt_form in self.prompt_forms if prompt_form}
        if chat is not None or not known:
            return bool(chat)
        if len(known) > 1:
            said = ", ".join(f"{name} on {form}" for name, form in zip(self.names, self.prompt_forms, strict=True))
            raise RecipeError(
                f"these adapters were trained on other forms of prompts ({said}): say --chat or --no-chat"
            )
        return known == {TEMPLATE}

    def merge_into(self, folder: Path, *, dequantize: bool = False) -> bool:
        """Writes the plain merged checkpoint and the tokenizer; returns whether that ended a tie of its embeddings."""
        from polyvera.adapter.merge import merge

        config: Any = self.base.model.config
        was_tied = getattr(config, "tie_word_embeddings", False)
        merge(self.base.model, dequantize=dequantize).save_pretrained(folder)  # type: ignore[operator]
        self.base.tokenizer.save_pretrained(folder)
        return bool(was_tied and not config.tie_word_embeddings)


def _base_for(adapters: Sequence[Adapter], model: str | None, kind: str, bare: str, dtype: str) -> Base:
    """The base, for what the adapters are trained to do; or as a class of transformers."""
    from polyvera.model.load import Base, load_as, load_base, locate
    from polyvera.model.tokenizer import tokenizer_of
    from polyvera.store.peft.tasks import task_of_class

    name = base_name(adapters, model)
    if not kind:
        return load_base(name, **{"task": bare, **task_of(adapters)}, dtype=dtype)
    task = task_of_class(kind)
    num = None if task is None else task.num_classes(dict(adapters[0].layout.head))
    given = {} if num is None else {"num_labels": num}
    return Base(load_as(name, kind, dtype=dtype, **given), tokenizer_of(locate(name)))


def base_name(adapters: Sequence[Adapter], given: str | None) -> str:
    """The base that the adapters name, or the given one. Raises RecipeError where they name several or none."""
    if given is not None:
        return given
    known = sorted({adapter.model for adapter in adapters if adapter.model})
    if len(known) == 1:
        return known[0]
    raise RecipeError(
        f"the adapters name {len(known)} base models ({', '.join(known) or 'none'}): say which, --model NAME"
    )


def task_of(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """What load_base() needs to know of the adapters' task, {} for text. Raises RecipeError where classes differ."""
    from polyvera.model.answer import meaning_of

    several = {(meaning.task, meaning.labels) for meaning in map(meaning_of, adapters)}
    if len(several) > 1:
        raise RecipeError(f"these adapters have {len(several)} different sets of labels: use them one at a time")
    task, labels = several.pop() if several else (LM, ())
    return {name: value for name, value in (("task", task), ("labels", labels)) if value not in (LM, ())}


def stored_text(header: Header) -> str:
    """The dtype of a file's numbers, and the error that it made."""
    error = header.own.error
    lost = "" if error is None else f", relative error {error.relative_l2:.2g}"
    return f"in {header.index.stored.name}{lost}"


def _written(value: object) -> object:
    """A choice as a flag takes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={part}" for key, part in value.items())
    return ", ".join(value) if isinstance(value, tuple | list) else value


def facts(registry: Registry, name: str) -> dict[str, object]:
    """All that a store knows of one adapter."""
    from polyvera.model.answer import meaning_of

    ref = registry.resolve(name)
    adapter = registry.get(ref)
    aliases = [alias for alias, version in registry.aliases(ref.name).items() if version == ref.version]
    known = {
        "name": str(ref),
        "aliases": ", ".join(aliases),
        "file": f"{ref.path} ({ref.num_bytes:,} bytes)",
        "stored": stored_text(registry.header(ref)),
        "created": adapter.created,
        "model": adapter.model,
        "base": adapter.base,
        "basis": adapter.layout.basis,
        "basis sha256": adapter.basis_sha256,
        "trained": f"{adapter.num_params:,} numbers, {bytes_text(4 * adapter.num_params)} in fp32",
        "of it head": adapter.layout.num_head_params or "",
        "learning rate": "" if adapter.lr is None else f"{adapter.lr:g}",
        "prompts": adapter.prompt_form,
        "layers": f"{len(adapter.layout.sites)}: {', '.join(adapter.layout.patterns)}",
        "task": meaning_of(adapter).task if is_read(adapter) else f"none here ({unread_class(adapter)})",
        "labels": ", ".join(adapter.labels),
        **{name: _written(value) for name, value in adapter.spec.to_dict().items()},
        **{name: f"{value:.4g}" for name, value in adapter.scores.items()},
    }
    return {key: value for key, value in known.items() if value not in ("", None)}


def basis_rows(registry: Registry) -> list[dict[str, Any]]:
    """A row for each made basis of a store, a damaged one too. Raises NotFoundError where there is no store."""
    registry.check_exists()
    return [{"name": ", ".join(ref.names), **_about(registry, ref)} for ref in registry.bases.list()]


def _about(registry: Registry, ref: BasisRef) -> dict[str, Any]:
    from polyvera.store.paths import basis_path

    try:
        registry.bases.check(basis_path(ref.sha256))
        rank, about = registry.bases.get(ref.sha256).key.rank, registry.bases.about(ref.sha256)
    except DamagedFileError:
        rank, about = None, {"kind": "damaged"}
    own = {name: about.get(name, "") for name in ("kind", "model")}
    return {"sha256": ref.sha256, "rank": rank, **own, "bytes": ref.num_bytes}
