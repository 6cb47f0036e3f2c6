"""serve and keys: the verbs of a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyvera.cli import tables
from polyvera.cli.verbs import DEFAULT_STORE, Store, verb
from polyvera.errors import RecipeError
from polyvera.plan import bytes_text

if TYPE_CHECKING:
    from polyvera.engine.adapter_cache import Observe
    from polyvera.engine.limits import Limits
    from polyvera.server.config import ServerConfig
    from polyvera.store.registry import Registry

MIB = 1 << 20


@verb("serve")
def serve(
    model: Annotated[str, typer.Argument(help="The base: a folder, a hub id or a wheel.")],
    store: Store = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="An address; others than this machine's own need --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="The file of API keys, which `polyvera keys` writes.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the base; default: MODEL's last part.")] = None,
    replicas: Annotated[
        int,
        typer.Option(
            min=1,
            help="Engines, each a process with a copy of the base and --max-rows, --slots and memory of its own; the "
            "processor's threads, and the GPUs, are divided among them.",
        ),
    ] = 1,
    max_rows: Annotated[int, typer.Option(min=1, help="Requests in one batch, of each replica.")] = 64,
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer.")] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait, of all replicas; beyond: 429.")] = 1024,
    max_per_tenant: Annotated[int, typer.Option(min=1, help="Answers of one tenant at a time.")] = 256,
    slots: Annotated[int, typer.Option(min=1, help="Resident adapters.")] = 1024,
    host_mib: Annotated[int, typer.Option(min=1, help="Memory of loaded adapters outside the slots.")] = 1024,
    prefix_mib: Annotated[int, typer.Option(min=0, help="Memory of kept prefixes of prompts, 0 for none.")] = 256,
    pin: Annotated[list[str] | None, typer.Option(help="An adapter that stays resident. Repeatable.")] = None,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Of a request.")] = 1,
    max_upload_mib: Annotated[int, typer.Option(min=1, help="Of an adapter that is uploaded.")] = 64,
    read_s: Annotated[float, typer.Option(help="Seconds that a client may take to send a request.")] = 20.0,
    write_s: Annotated[float, typer.Option(help="Seconds that a client may leave an answer unread.")] = 30.0,
    drain_s: Annotated[float, typer.Option(help="Seconds that running answers have after SIGTERM.")] = 30.0,
    lora_root: Annotated[Path | None, typer.Option(help="The folder that load_lora_adapter may read from.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further name of this machine, without keys.")] = None,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="/metrics needs no key.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load and check everything, but do not listen.")] = False,
) -> None:
    """Serve any mix of a store's adapters in one batch, behind OpenAI's HTTP API."""
    from polyvera.engine.limits import Limits
    from polyvera.server.config import ServerConfig
    from polyvera.store.registry import Registry

    config = ServerConfig(
        base=name or model.rstrip("/").rpartition("/")[2].rpartition(":")[2],
        keys=keys,
        lora_root=lora_root,
        max_body_bytes=max_body_mib * MIB,
        max_upload_bytes=max_upload_mib * MIB,
        max_per_tenant=max_per_tenant,
        read_s=read_s,
        write_s=write_s,
        drain_s=drain_s,
        is_metrics_open=open_metrics,
        hosts=tuple(allow_host or ()),
    )
    limits = Limits(
        max_rows=max_rows,
        max_context=max_context,
        max_waiting=max_waiting,
        num_slots=slots,
        host_bytes=host_mib * MIB,
        prefix_bytes=prefix_mib * MIB,
    )
    _run(model, Registry(store), config, limits, pin or [], None if dry_run else (host, port), replicas)


def _run(
    model: str,
    registry: Registry,
    config: ServerConfig,
    limits: Limits,
    pinned: list[str],
    address: tuple[str, int] | None,
    num_replicas: int,
) -> None:
    from polyvera.server.app import make_app
    from polyvera.server.metrics import Metrics
    from polyvera.server.middleware import ServerState
    from polyvera.server.server import Server, check_address

    if address is not None:
        check_address(address[0], config)
    metrics, state = Metrics(), ServerState()
    with _engine(model, registry, limits, metrics.observe, num_replicas) as engine:
        for one in pinned:
            engine.pin(registry.resolve(one))
        app = make_app(engine, config, metrics, state)
        typer.echo(_vectors(engine) if hasattr(engine, "pooling") else _costs(engine))
        if address is None:
            return
        server = Server(app, engine, config, state, *address)
        typer.echo(
            f"{server.url} (OpenAI's API under /v1); SIGTERM or Ctrl-C stops it when the running answers are done"
        )
        server.run()
    typer.echo("stopped")


def _vectors(encoder: Any) -> str:
    limits = encoder.limits
    return (
        f"an encoder for /v1/embeddings ({encoder.pooling}) and /v1/classify: {limits.max_rows} texts of up to "
        f"{encoder.max_context} tokens in a step; {limits.num_slots} slots for adapters. It generates nothing and "
        "keeps no prefixes, so --prefix-mib has no effect"
    )


def _engine(model: str, registry: Registry, limits: Limits, observe: Observe, num_replicas: int) -> Any:
    """What answers: an engine in this process, or several in processes of their own."""
    from polyvera.engine.embedding.embedder import engine_for
    from polyvera.model.load import AUTO_TASK, load_base, place
    from polyvera.replicas.replica_pool import ReplicaPool

    if num_replicas > 1:
        return ReplicaPool(model, registry, limits, observe, num=num_replicas)
    return engine_for(place(load_base(model, task=AUTO_TASK)), registry, limits, observe)


def _costs(engine: Any) -> str:
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
    file: Annotated[Path, typer.Argument(help="The file of keys; `serve` reads it anew when it changes.")],
    add: Annotated[str | None, typer.Option("--add", metavar="TENANT", help="Make a key, and print it once.")] = None,
    adapters: Annotated[
        list[str] | None, typer.Option(help="What it may call: names, or beginnings with '*'; default TENANT/*.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="It may call the bare base model.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="It may publish and remove adapters in its scope.")] = False,
    days: Annotated[float | None, typer.Option(help="It expires after so many days.")] = None,
    remove: Annotated[str | None, typer.Option("--remove", metavar="ID", help="Remove the key of that id.")] = None,
) -> None:
    """List, make and remove the API keys of a server; the file holds only their sha256."""
    from polyvera.server.api_keys import KeyFile, read_keys

    kept = KeyFile(file)
    if add is None and (adapters or base or admin or days is not None):
        raise RecipeError("--adapters, --base, --admin and --days are of a new key: give --add TENANT, too")
    if remove is not None:
        typer.echo(f"removed {kept.remove(remove).id} from {file}")
    if add is not None:
        secret, key = kept.add(add, adapters or [f"{add}/*"], base=base, admin=admin, days=days)
        typer.echo(f"{key.id} for {add}: {', '.join(key.adapters)}; this is the only time that it is shown:", err=True)
        typer.echo(secret)
    if add is None and remove is None:
        rows = [
            {"id": k.id, "tenant": k.tenant, "adapters": ", ".join(k.adapters), "base": k.base, "admin": k.admin}
            | {"created": f"{k.created:%Y-%m-%d}", "expires": f"{k.expires:%Y-%m-%d}" if k.expires else "never"}
            for k in read_keys(file)
        ]
        shown = [{name: str(value) for name, value in row.items()} for row in rows]
        tables.console().print(tables.table_of(shown, f"{len(rows)} keys in {file}"))
