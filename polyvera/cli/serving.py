"""serve and keys: the verbs of a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyvera.cli import tables
from polyvera.cli.flags import Taken, Whole
from polyvera.cli.verbs import verb
from polyvera.errors import RecipeError, ServeError
from polyvera.plan import bytes_text
from polyvera.server.config import ServerConfig, Serving

if TYPE_CHECKING:
    from polyvera.engine.adapter_loader import Observe
    from polyvera.engine.embedding.embedder import Embedder
    from polyvera.engine.generation.generator import Generator
    from polyvera.engine.protocol import EmbeddingEngine, ServedEngine
    from polyvera.jobs.fine_tuning import FineTuning
    from polyvera.replicas.replica_pool import ReplicaPool
    from polyvera.server.address import Address
    from polyvera.store.reference import AdapterRef
    from polyvera.store.registry import Registry


@verb("serve")
def serve(
    serving: Annotated[Serving, Whole(Serving, argument="MODEL")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load and check everything, but do not listen.")] = False,
) -> None:
    """Serve any mix of a store's adapters in one batch, behind OpenAI's HTTP API."""
    from polyvera.server.address import Address
    from polyvera.store.registry import Registry

    _run(serving, Registry(serving.store), None if dry_run else Address(serving.host, serving.port, serving.uds))


def _run(serving: Serving, registry: Registry, address: Address | None) -> None:
    from polyvera.engine.interpreter import take_turns
    from polyvera.server.app import make_app
    from polyvera.server.metrics import Metrics
    from polyvera.server.middleware import ServerState
    from polyvera.server.server import Server, reload_at_hangup
    from polyvera.server.usage import open_usage

    take_turns()
    config = serving.config
    if address is not None:
        address.check(config)
    own = None if address is None else address.bound()
    refs = _checked(registry, config, serving.pin)
    usage, metrics, state = open_usage(config.usage, registry.url), Metrics(), ServerState()
    reload_at_hangup(state)
    with (
        _engine(serving, registry, metrics.observe) as engine,
        _training(serving, engine, is_listening=address is not None) as fine_tuning,
    ):
        for ref in refs:
            engine.pin(ref)
        app = make_app(engine, config, metrics, state, usage, fine_tuning)
        typer.echo(_costs(engine) if engine.embedding is None else _vectors(engine.embedding))
        if address is None:
            return
        server = Server(app, engine, config, state, address, own)
        typer.echo(
            f"{server.url} (OpenAI's API under /v1); SIGTERM or Ctrl-C stops it when the running answers are done"
        )
        server.run()
    typer.echo("stopped")


@contextmanager
def _training(serving: Serving, engine: ServedEngine, *, is_listening: bool) -> Iterator[FineTuning | None]:
    """The jobs of a server that trains, and the process that trains them. Raises ServeError for an encoder."""
    from polyvera.jobs.fine_tuning import FineTuning
    from polyvera.train.live.trainer_main import TrainerStart
    from polyvera.train.live.trainer_process import TrainerProcess

    policy = serving.policy
    if not policy.train:
        yield None
        return
    if engine.generation is None:
        raise ServeError(f"--train is for models that write text, and {serving.model} is an encoder: leave it out")
    jobs = FineTuning.open(policy)
    with TrainerProcess(TrainerStart(serving.model, serving.store, policy)) if is_listening else nullcontext():
        yield jobs


def _checked(registry: Registry, config: ServerConfig, pinned: Sequence[str]) -> list[AdapterRef]:
    """What is pinned. Raises PolyveraError for what is wrong without the model: keys, folders, the store, its pins."""
    from polyvera.server.api_keys import read_keys

    if config.keys is not None:
        read_keys(config.keys)
    if config.lora_root is not None and not config.lora_root.is_dir():
        raise ServeError(f"--lora-root {config.lora_root} is not a folder")
    refs = [registry.resolve(one) for one in pinned]
    names = {ref.name for ref in registry.list()}
    none = f"no adapters in {registry.url} yet: the first publish makes the store"
    typer.echo(f"{len(names):,} adapters in {registry.url}" if names else none, err=True)
    return refs


def _vectors(encoder: EmbeddingEngine) -> str:
    limits = encoder.limits
    return (
        f"an encoder for /v1/embeddings ({encoder.pooling}) and /v1/classify: {limits.max_rows} texts of up to "
        f"{encoder.max_context} tokens in a step; {limits.num_slots} slots for adapters. It generates nothing and "
        "keeps no prefixes, so --prefix-mib has no effect"
    )


def _engine(serving: Serving, registry: Registry, observe: Observe) -> Generator | Embedder | ReplicaPool:
    """What answers: an engine in this process, or several in processes of their own."""
    from polyvera.engine.factory import engine_for
    from polyvera.model.load import load_base, place
    from polyvera.replicas.replica_pool import ReplicaPool

    model, task, limits = serving.model, serving.task, serving.limits
    if serving.num_processes:
        return ReplicaPool(model, registry, limits, observe, num=serving.num_processes, task=task)
    return engine_for(place(load_base(model, task=task)), registry, limits, observe)


def _costs(engine: ServedEngine) -> str:
    limits, config = engine.limits, engine.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * engine.model.dtype.itemsize
    most = token * limits.max_rows * engine.max_context
    return (
        f"{limits.max_rows} rows of {engine.max_context} tokens: the cache takes up to {bytes_text(most)} as rows "
        f"fill, {bytes_text(token)} a token; {limits.num_slots} slots for adapters"
    )


@verb("keys")
def keys_(
    file: Annotated[Path, Taken("keys", Serving, argument="FILE", is_required=True)],
    add: Annotated[str | None, typer.Option("--add", metavar="TENANT", help="Make a key, and print it once.")] = None,
    adapters: Annotated[
        list[str] | None, typer.Option(help="What it may call: names, or beginnings with '*'; default TENANT/*.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="It may call the bare base model.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="It may publish and remove adapters in its scope.")] = False,
    days: Annotated[float | None, typer.Option(help="It expires after so many days.")] = None,
    weight: Annotated[float | None, typer.Option(help="The share of its tenant beside others, 1 by default.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests that it may make a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens of prompts and answers a minute.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Tokens of prompts and answers a day (UTC).")] = None,
    remove: Annotated[str | None, typer.Option("--remove", metavar="ID", help="Remove the key of that id.")] = None,
) -> None:
    """List, make and remove the API keys of a server; the file holds only their sha256."""
    from polyvera.server.api_keys import KeyFile, KeyRates, rates_text, read_keys

    kept, rates = KeyFile(file), KeyRates(requests_per_minute, tokens_per_minute, tokens_per_day)
    if add is None and (adapters or base or admin or rates != KeyRates() or {days, weight} != {None}):
        raise RecipeError(
            "--adapters, --base, --admin, --days, --weight and the rates are of a new key: give --add TENANT, too"
        )
    if remove is not None:
        typer.echo(f"removed {kept.remove(remove).id} from {file}")
    if add is not None:
        scope = adapters or [f"{add}/*"]
        secret, key = kept.add(add, scope, base=base, admin=admin, days=days, weight=weight, rates=rates)
        typer.echo(f"{key.id} for {add}: {', '.join(key.adapters)}; this is the only time that it is shown:", err=True)
        typer.echo(secret)
    if add is None and remove is None:
        rows = [
            {"id": k.id, "tenant": k.tenant, "adapters": ", ".join(k.adapters), "base": k.base, "admin": k.admin}
            | {"rates": rates_text(k)}
            | {"created": f"{k.created:%Y-%m-%d}", "expires": f"{k.expires:%Y-%m-%d}" if k.expires else "never"}
            for k in read_keys(file)
        ]
        shown = [{name: str(value) for name, value in row.items()} for row in rows]
        tables.console().print(tables.table_of(shown, f"{len(rows)} keys in {file}"))
