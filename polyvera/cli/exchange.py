"""The verbs by which adapters come from other programs and go to them."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from polyvera.cli import tables
from polyvera.cli.flags import Taken
from polyvera.cli.verbs import Model, Store, Stored, verb
from polyvera.errors import RecipeError, SpecError, did_you_mean
from polyvera.store.foreign import ForeignWarning

if TYPE_CHECKING:
    from polyvera.adapter.adapter import Adapter
    from polyvera.store.formats import AdapterFormat

# Options that are called otherwise in the functions of formats.
FLAGS = {"save_projection": "--without-basis"}
Name = Annotated[str, typer.Argument(help="NAME, NAME@3 or NAME@ALIAS.")]
NewName = Annotated[str, Taken("name", is_required=True)]
Base = Annotated[str, Taken("model", is_required=True)]
Alias = Annotated[str | None, Taken("alias")]
AsLora = Annotated[
    bool, typer.Option("--as-lora", help="As the equal LoRA of one rank, which every reader of LoRAs scales alike.")
]
TaskType = Annotated[str | None, typer.Option(help="PEFT's, such as CAUSAL_LM or SEQ_CLS.")]
NumberType = Annotated[str | None, typer.Option("--dtype", help="Of the numbers; by default the narrowest exact one.")]
Pickle = Annotated[
    bool, typer.Option("--pickle", help="Also read adapter_model.bin, by torch.load(weights_only=True).")
]
Subfolder = Annotated[str, typer.Option(help="The adapter's folder inside a repository or folder.")]
Basis = Annotated[str | None, typer.Option(help="What a basis that isn't in the folder was rounded to.")]


@verb("import")
def import_(
    name: NewName,
    model: Base,
    alias: Alias,
    stored: Stored,
    store: Store,
    source: Annotated[str, typer.Argument(help="A folder of PEFT or mlx-lm, or OWNER/NAME[@REVISION] of a hub.")],
    subfolder: Subfolder = "",
    pickle: Pickle = False,
    basis_dtype: Basis = None,
) -> None:
    """Take in an adapter from another program; its logits stay the same."""
    from polyvera.store.formats import PICKLES
    from polyvera.store.hub import located

    folder = _noting(located, source, subfolder, PICKLES if pickle else ())
    taken = _noting(imported, folder, model, pickle=pickle, basis_dtype=basis_dtype)
    _publish(taken, name, store, alias, stored)


@verb("pull")
def pull(
    name: NewName,
    model: Base,
    alias: Alias,
    stored: Stored,
    store: Store,
    repository: Annotated[str, typer.Argument(help="OWNER/NAME[@REVISION] of a hub.")],
    subfolder: Subfolder = "",
    pickle: Pickle = False,
    basis_dtype: Basis = None,
) -> None:
    """Take in an adapter from a hub."""
    from polyvera.store.formats import PICKLES
    from polyvera.store.hub import fetched

    folder = _noting(fetched, repository, subfolder, PICKLES if pickle else ())
    taken = _noting(imported, folder, model, pickle=pickle, basis_dtype=basis_dtype)
    _publish(taken, name, store, alias, stored)


@verb("export")
def export(
    store: Store,
    model: Model,
    name: Name,
    target: Annotated[Path, typer.Argument(help="The folder to write, or the file of a GGUF adapter.")],
    form: Annotated[str, typer.Option("--format", help="peft, mlx or gguf.")] = "peft",
    as_lora: AsLora = False,
    rank_at_most: Annotated[int | None, typer.Option(min=1, help="Refuse a LoRA that a server doesn't take.")] = None,
    task_type: TaskType = None,
    dtype: NumberType = None,
    without_basis: Annotated[bool, typer.Option("--without-basis", help="Let PEFT draw the basis again.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an exported adapter there.")] = False,
) -> None:
    """Write an adapter as other programs read it."""
    from polyvera.store.registry import Registry

    given = {"as_lora": as_lora, "rank_at_most": rank_at_most, "task_type": task_type, "dtype": dtype}
    asked = _asked(given | {"overwrite": overwrite}) | ({"save_projection": False} if without_basis else {})
    typer.echo(str(_noting(exported, Registry(store).get(name), target, form, model, asked)))


@verb("push")
def push(
    store: Store,
    model: Model,
    name: Name,
    repository: Annotated[str, typer.Argument(help="OWNER/NAME[@REVISION] of a hub; it is made where it is new.")],
    form: Annotated[str, typer.Option("--format", help="peft, mlx or gguf.")] = "peft",
    as_lora: AsLora = False,
    task_type: TaskType = None,
    dtype: NumberType = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "",
) -> None:
    """Send an adapter to a hub, as other programs read it."""
    from polyvera.store.hub import send
    from polyvera.store.registry import Registry

    registry = Registry(store)
    ref = registry.resolve(name)
    asked = _asked({"as_lora": as_lora, "task_type": task_type, "dtype": dtype})
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / "adapter"
        _noting(exported, registry.get(ref), folder / _format(form).file_name, form, model, asked)
        typer.echo(send(folder, repository, private=private, message=message or f"Upload {ref}"))


def imported(folder: Path, model: str, *, pickle: bool, basis_dtype: str | None) -> Adapter:
    """A folder of another program as an adapter that knows its base by name and fingerprint.

    Raises SpecError for an option that its format does not use, and what the format's reader raises.
    """
    from polyvera.adapter.fingerprint import fingerprint
    from polyvera.model.load import lend_pooler
    from polyvera.store.formats import format_of

    form = format_of(folder)
    asked = _asked({"pickle": pickle, "basis_dtype": basis_dtype})
    check_options(form.name, form.read, asked)
    base = form.base(folder, model, **{key: asked[key] for key in asked if key == "pickle"})
    adapter = form.read(folder, base, **asked)
    lend_pooler(base, model)  # only now: the other program's model has none to adapt
    return replace(adapter, base=fingerprint(base), model=adapter.model or model)


def exported(adapter: Adapter, target: Path, form: str, model: str | None, asked: Mapping[str, Any]) -> Path:
    """Writes an adapter in a format. model: the base, where it is not the one that the adapter names.

    Raises RecipeError for an unknown format, SpecError for an option that it does not use.
    """
    from polyvera.store.formats import base_of

    chosen = _format(form)
    check_options(chosen.name, chosen.write, asked)
    if adapter.spec.frozen_head is None:
        return chosen.write(adapter, target, model=base_of(adapter, model), **asked)
    whole, base = _with_head(adapter, model)
    return chosen.write(whole, target, model=base, **asked)


def _with_head(adapter: Adapter, model: str | None) -> tuple[Adapter, Any]:
    """An adapter with the head that its base makes, and that base."""
    from polyvera.cli.session import base_name, task_of
    from polyvera.model.frozen_head import LabelReader, with_head
    from polyvera.model.load import load_base

    base = load_base(base_name([adapter], model), **task_of([adapter]))
    return with_head(adapter, LabelReader(base.model, base.tokenizer)), base.model


def check_options(form: str, function: Callable[..., Any], asked: Iterable[str]) -> None:
    """Raises SpecError for an option that a format's function does not take."""
    taken = inspect.signature(function).parameters
    for name in asked:
        if name not in taken:
            raise SpecError(f"{FLAGS.get(name, '--' + name.replace('_', '-'))} has no meaning for the format {form}")


def _format(name: str) -> AdapterFormat:
    from polyvera.store.formats import FORMATS

    if name not in FORMATS:
        raise RecipeError(f"--format={name!r} must be one of: {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def _asked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in given.items() if value not in (None, False)}


def _publish(adapter: Adapter, name: str, store: str, alias: str | None, stored: str) -> None:
    from polyvera.cli.session import stored_text
    from polyvera.store.registry import Registry

    registry = Registry(store)
    ref = registry.put(name, adapter, alias=alias, dtype=stored)
    typer.echo(f"{ref} ({ref.num_bytes:,} bytes, {stored_text(registry.header(ref))}) in {store}")


def _noting(function: Any, *given: Any, **named: Any) -> Any:
    """The result of a function, whose warnings are printed as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ForeignWarning)
        result = function(*given, **named)
    for warning in caught:
        if issubclass(warning.category, ForeignWarning):
            tables.console(error=True).print(f"[yellow]note:[/] {escape(str(warning.message))}")
    return result
