"""The verbs. Each reads its flags, calls one or two functions of the rooms below, and prints."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from polyvera.cli import tables
from polyvera.cli.flags import Taken, Whole, with_settings
from polyvera.cli.session import Rows, Session, basis_rows
from polyvera.errors import PolyveraError, RecipeError
from polyvera.model.config import AUTO_TASK
from polyvera.train.memory import peak_bytes
from polyvera.train.recipe import Recipe

if TYPE_CHECKING:
    from polyvera.plan import Cost

app = typer.Typer(
    name="polyvera",
    help="One frozen model, one frozen random basis, ten thousand adapters: plan, train, store and use them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(is_asked: bool) -> None:
    if is_asked:
        print(f"polyvera {version('polyvera')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """What may stand before a verb."""
    # It warns of a package that it does without, wherever it is installed and whatever the verb.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


Store = Annotated[str, Taken("store")]
Model = Annotated[str | None, Taken("model")]
Names = Annotated[list[str] | None, typer.Argument(help="Adapters, as NAME, NAME@3 or NAME@ALIAS.", show_default=False)]
ForceBase = Annotated[
    bool, typer.Option("--any-base", help="Apply adapters to a base model that they were not trained on.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Columns = Annotated[dict[str, str], Taken("columns")]
Chat = Annotated[bool | None, Taken("chat")]
Published = Annotated[str | None, Taken("name", is_shown=False)]
Stored = Annotated[str, Taken("stored")]


def verb(name: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose foreseen errors end in one readable message and exit status 1."""

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        called = with_settings(function)

        @wraps(called)
        def guarded(**given: Any) -> None:
            try:
                called(**given)
            except PolyveraError as error:
                tables.console(error=True).print(f"[bold red]error:[/] {escape(str(error))}")
                raise typer.Exit(1) from None
            except BrokenPipeError:  # who reads the output has gone
                raise
            except OSError as error:  # of a file that cannot be read or written
                tables.console(error=True).print(f"[bold red]error:[/] {escape(str(error))}")
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                tables.console(error=True).print("interrupted; `--resume` goes on from the last checkpoint of --output")
                raise typer.Exit(130) from None

        return app.command(name, **settings)(guarded)

    return registered


@verb("plan")
def plan(
    model: Annotated[str, Taken("model", argument="MODEL", is_required=True)],
    rank: Annotated[int | None, Taken("rank")],
    targets: Annotated[str | tuple[str, ...], Taken("targets")],
    head: Annotated[tuple[str, ...] | None, Taken("head")],
    stored: Stored,
    num_labels: Annotated[int | None, typer.Option(help="Outputs of the head.")] = None,
    task: Annotated[str | None, typer.Option(help="What the rows will be for; its head is counted.")] = None,
    base_dtype: Annotated[str, typer.Option(help="The frozen base's, in training.")] = "bfloat16",
    adapters: Annotated[int, typer.Option(help="How many adapters to add up.")] = 10_000,
    fleet: Annotated[int, typer.Option(min=0, help="Also the memory to train so many at a time in one bank.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What every method costs on a model, before a byte of it is downloaded."""
    from polyvera.adapter.spec import AdapterSpec
    from polyvera.cli.training import head_for
    from polyvera.model.load import config_source
    from polyvera.model.shapes import model_shapes
    from polyvera.plan import compare, to_dict

    kind, num_labels, own = head_for(config_source(model), task, num_labels)
    spec = AdapterSpec(targets=targets, head=own if head is None else head)
    shapes = model_shapes(config_source(model), spec, kind=kind, num_labels=num_labels)
    if shapes.refusal:
        typer.echo(f"its quantized weights cannot be loaded on this machine: {shapes.refusal}", err=True)
    costs = compare(shapes.sites, shapes.num_params, rank=rank, head=shapes.head, base_dtype=base_dtype, stored=stored)
    if as_json:
        typer.echo(json.dumps([to_dict(cost) | _fleet(cost, fleet) for cost in costs], indent=2))
        return
    out = tables.console()
    reads = "" if shapes.context_length is None else f", reads {shapes.context_length:,} tokens"
    title = f"{shapes.name}, {shapes.num_params:,} parameters{reads}, {len(shapes.sites)} adapted layers, "
    title += f"base in {base_dtype}"
    out.print(tables.cost_table(costs, title))
    if shapes.coverage is not None:
        out.print(shapes.coverage.text)
    out.print(tables.many_table(costs, adapters, fleet))
    out.print("training: the base, 16 bytes a trained number (Adam in fp32) and the basis; activations come on top.")


def _fleet(cost: Cost, num_slots: int) -> dict[str, int]:
    return {"fleet_slots": num_slots, "fleet_bytes": cost.fleet_bytes(num_slots)} if num_slots and cost.rank else {}


@verb("train")
def train(
    recipe: Annotated[Recipe, Whole()],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the cost, train nothing.")
    ] = False,
) -> None:
    """Train one adapter, with --fleet one for every tenant at once, or with --full the whole model; and publish."""
    from polyvera.cli import fleet, training

    run = fleet.run if recipe.fleet else training.run
    run(recipe, resume=resume, dry_run=dry_run, out=tables.console())


@verb("eval")
def evaluate(
    columns: Columns,
    chat: Chat,
    batch_size: Annotated[int, Taken("batch_size")],
    store: Store,
    model: Model,
    published: Published,
    test: Annotated[str | None, Taken("test", is_shown=False)],
    training: Annotated[str | None, Taken("data", is_shown=False)],
    adapter_column: Annotated[str | None, Taken("adapter_column", is_shown=False)],
    names: Names = None,
    data: Annotated[str | None, typer.Option(help="The rows to answer: a file or hub/id:config@split.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    any_base: ForceBase = False,
    as_json: AsJson = False,
    fleet: Annotated[
        bool,
        typer.Option("--fleet", help="Each tenant of --data on its own rows. NAMES: their prefix in the store."),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="With --fleet: a folder for the table and the picture.")] = None,
) -> None:
    """Score adapters and the bare base model on the same rows, or a whole fleet on its tenants' rows, side by side."""
    rows = Rows(data or test or (None if fleet else training), columns, chat, limit, batch_size)
    if fleet:
        from polyvera.cli.fleet import score

        scored = score(names or [], rows, store=store, model=model, adapter_column=adapter_column)
        scored.report(output, as_json=as_json, out=tables.console())
        return
    if output is not None:
        raise RecipeError(f"--output {output} has no effect without --fleet")
    session = Session.open(names or published, store, model, any_base=any_base, bare=AUTO_TASK)
    scores = session.evaluate(rows)
    typer.echo(json.dumps(scores, indent=2)) if as_json else tables.console().print(tables.score_table(scores))


@verb("compare")
def compare(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: methods, seeds, factors, settings and tasks.")],
    output: Annotated[Path, typer.Option(help="Folder of the results; a comparison cut short goes on there.")],
) -> None:
    """Train methods side by side, each at its own swept learning rate, and write the table and the picture."""
    from polyvera.cli.comparing import run

    run(recipe, output, out=tables.console())


@verb("generate")
def generate(
    run_seed: Annotated[int, Taken("run_seed")],
    chat: Chat,
    store: Store,
    model: Model,
    published: Published,
    names: Names = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt. Repeatable.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from this much of the probability.")] = 1.0,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Also the bare base model's answer.")] = True,
    any_base: ForceBase = False,
    as_json: AsJson = False,
) -> None:
    """Answer prompts with each adapter and with the bare base model, all in one batch."""
    if not prompt:
        raise RecipeError("there is no prompt: give one or more with --prompt TEXT")
    session = Session.open(names or published, store, model, any_base=any_base)
    answers = session.generate(
        prompt, base=base, chat=chat, seed=run_seed, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
    )
    typer.echo(json.dumps(answers, indent=2, ensure_ascii=False)) if as_json else tables.console().print(
        tables.table_of(answers)
    )


@verb("ls")
def ls(
    store: Store,
    prefix: Annotated[str | None, typer.Argument(help="Only names that begin so.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version, not only the latest.")] = False,
    bases: Annotated[bool, typer.Option("--bases", help="The made bases instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the adapters in a store, or its made bases."""
    from polyvera.store.registry import Registry

    registry = Registry(store)
    if bases and (every or prefix):
        raise RecipeError("--bases lists all made bases of a store: leave --all and the beginning of a name out")
    refs = [] if bases else registry.list(prefix, latest=not every, missing_ok=False)
    rows: list[dict[str, Any]] = [{"name": r.name, "version": r.version, "bytes": r.num_bytes} for r in refs]
    rows = basis_rows(registry) if bases else rows
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    shown = [{**row, "bytes": f"{row['bytes']:,}"} for row in rows]
    tables.console().print(tables.table_of(shown, f"{len(rows)} in {store}", ("version", "rank", "bytes")))


@verb("show")
def show(store: Store, name: Annotated[str, typer.Argument(help="NAME, NAME@3 or NAME@ALIAS.")]) -> None:
    """All that is known of one adapter, its file checked."""
    from polyvera.cli.session import facts
    from polyvera.store.registry import Registry

    tables.console().print(tables.fact_table(facts(Registry(store), name)))


@verb("verify")
def verify(store: Store) -> None:
    """Read and check every byte of every adapter in a store."""
    from polyvera.store.registry import Registry

    registry = Registry(store)
    problems = registry.verify()
    for problem in problems:
        typer.echo(str(problem), err=True)
    typer.echo(f"{len(registry.list())} adapters checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@verb("merge")
def merge(
    dtype: Annotated[str, Taken("dtype")],
    store: Store,
    model: Model,
    name: Annotated[str, typer.Argument(help="NAME, NAME@3 or NAME@ALIAS.")],
    folder: Annotated[Path, typer.Argument(help="Where the plain checkpoint goes; a new or empty folder.")],
    any_base: ForceBase = False,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Also a quantized base, as plain weights.")] = False,
) -> None:
    """Fold an adapter into a plain checkpoint that needs no polyvera."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is there already and not empty: name a new folder")
    session = Session.open([name], store, model, any_base=any_base, dtype=dtype, bare=AUTO_TASK, asks=False)
    if session.merge_into(folder, dequantize=dequantize):
        typer.echo("its output layer is no longer the embedding: config.json says tie_word_embeddings: false")
    typer.echo(f"{folder} (peak memory {peak_bytes() / 2**30:.1f} GiB)")


@verb("alias")
def alias(
    store: Store,
    name: Annotated[str, typer.Argument(help="NAME@3, or NAME for its latest version.")],
    word: Annotated[str, typer.Argument(help="The alias.")],
) -> None:
    """Point an alias at a version, so that NAME@ALIAS means it."""
    from polyvera.store.registry import Registry

    registry = Registry(store)
    ref = registry.resolve(name)
    typer.echo(f"{ref.name}@{word} is {registry.alias(ref.name, word, ref.version)}")


@verb("rm")
def rm(
    store: Store,
    name: Annotated[str, typer.Argument(help="NAME@3: one version; or a made basis, with --basis.")],
    with_aliases: Annotated[bool, typer.Option("--with-aliases", help="Also the aliases that point to it.")] = False,
    basis: Annotated[
        bool, typer.Option("--basis", help="A made basis, by its name or sha256, which no adapter names.")
    ] = False,
) -> None:
    """Remove one version of an adapter, whose number is never given out again; or a made basis with its names."""
    from polyvera.store.registry import Registry

    if basis and with_aliases:
        raise RecipeError("--with-aliases has no effect with --basis, which removes the names of a basis too")
    if basis:
        typer.echo(f"the basis {Registry(store).bases.remove(name)} removed from {store}")
        return
    Registry(store).remove(name, with_aliases=with_aliases)
    typer.echo(f"{name} removed from {store}")
