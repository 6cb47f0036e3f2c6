"""ServerConfig: what the HTTP server takes on, and from whom. Serving: all that users set of a served model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field

from polyvera.engine.limits import ENGINE, Limits
from polyvera.errors import PolyveraError, ServeError
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.settings.field import DEFAULT_STORE, MIB, MODEL, STORE, Count, Described
from polyvera.settings.model import SettingsModel
from polyvera.settings.parts import check, model_of, part_of

HTTP, ACCESS = "HTTP", "Access"
Seconds = Annotated[float, Gt(0.0), Lt(86_400.0)]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server takes on. Raises ServeError for an invalid value.

    base: the name of the base model, as clients see it. keys: None is an open server, for this machine's own programs.
    """

    base: Annotated[str, Field(pattern="^[^:]+$")]
    keys: Annotated[
        Path | None, Described("The file of API keys, which `polyvera keys` writes.", ACCESS, env="POLYVERA_KEYS")
    ] = None
    usage: Annotated[
        Path | None,
        Described("The SQLite file of usage; by default beside the store's folder, named STORE.usage.sqlite.", ACCESS),
    ] = None
    audit_log: Annotated[
        Path | None, Described("A file that gets a line of JSON for each publish, removal, alias and key.", ACCESS)
    ] = None
    otlp_traces_endpoint: Annotated[
        str | None, Described("Where spans of OpenTelemetry go, such as http://localhost:4318/v1/traces.", HTTP)
    ] = None
    access_log: Annotated[bool, Described("Write a line of JSON for each request to standard output.", HTTP)] = False
    lora_root: Annotated[Path | None, Described("The folder that load_lora_adapter may read from.", ACCESS)] = None
    max_body_bytes: Annotated[
        Count, Described("Most bytes of a request, in MiB.", HTTP, name="max_body_mib", scale=MIB)
    ] = 1 << 20
    max_upload_bytes: Annotated[
        Count, Described("Most bytes of an uploaded adapter or file, in MiB.", HTTP, name="max_upload_mib", scale=MIB)
    ] = 64 << 20
    max_choices: Annotated[Count, Described("Answers of one request.", HTTP)] = 64
    max_per_tenant: Annotated[
        Count, Described("Answers of one tenant at a time; more wait, up to max_waiting of each tenant.", HTTP)
    ] = 256
    max_queued: Annotated[Count, Described("Parts of an answer that a client has not taken yet.", HTTP)] = 1024
    max_connections: Annotated[Count, Described("Open connections.", HTTP)] = 2048
    read_s: Annotated[Seconds, Described("Seconds that a client may take to send a request.", HTTP)] = 20.0
    write_s: Annotated[Seconds, Described("Seconds that a client may leave an answer unread.", HTTP)] = 30.0
    drain_s: Annotated[Seconds, Described("Seconds that running answers have after SIGTERM.", HTTP)] = 30.0
    is_metrics_open: Annotated[bool, Described("/metrics needs no key.", ACCESS, name="open_metrics")] = False
    hosts: Annotated[
        tuple[str, ...],
        Described("Another name of this machine that a server without keys answers to.", ACCESS, name="allow_host"),
    ] = ()

    allow_origin: Annotated[
        tuple[str, ...],
        Described("An origin whose pages may call, such as http://localhost:3000; '*' for any.", ACCESS),
    ] = ()
    root_path: Annotated[str, Described("What a proxy puts before every path.", HTTP)] = ""

    def __post_init__(self) -> None:
        check(self, ServeError)


if TYPE_CHECKING:
    Parts = SettingsModel
else:
    Parts = model_of(Limits, ServerConfig)


class ServedModel(Parts):
    """All that users set of a served model, wherever it runs: Limits and ServerConfig under their outer names."""

    what: ClassVar[str] = "serving"
    env_prefix: ClassVar[str] = "POLYVERA_SERVE_"
    refusal: ClassVar[type[PolyveraError]] = ServeError

    model: Annotated[str, MODEL]
    store: Annotated[str, STORE] = DEFAULT_STORE
    name: Annotated[
        str | None,
        Described("What clients call the base; by default MODEL's last part.", MODEL.group, ("served_model_name",)),
    ] = None
    pin: Annotated[tuple[str, ...], Described("An adapter that stays resident.", ENGINE)] = ()
    task: Annotated[
        Literal["auto", "lm", "label"],
        Described(
            "What the base is loaded for; label serves a language model's classifiers. By default what it is itself.",
            MODEL.group,
        ),
    ] = "auto"

    @property
    def limits(self) -> Limits:
        """What an engine takes on."""
        return part_of(self, Limits)

    @property
    def config(self) -> ServerConfig:
        """What the server takes on."""
        return part_of(
            self, ServerConfig, base=self.name or self.model.rstrip("/").rpartition("/")[2].rpartition(":")[2]
        )


if TYPE_CHECKING:
    TrainingParts = SettingsModel
else:
    TrainingParts = model_of(TrainingPolicy)


class Serving(ServedModel, TrainingParts):
    """The settings of `polyvera serve`. Raises ServeError, one line for each problem."""

    @property
    def policy(self) -> TrainingPolicy:
        """What is trained beside the answers."""
        return part_of(self, TrainingPolicy)

    host: Annotated[str, Described("An address; others than this machine's own need keys.", HTTP)] = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65_535), Described("0 takes a free one.", HTTP)] = 8000
    uds: Annotated[
        Path | None, Described("A unix socket's path, instead of host and port; its file is its user's alone.", HTTP)
    ] = None
    replicas: Annotated[
        Count | None,
        Described(
            "Engines, each a process with a copy of the base and limits of its own, among which the processor's "
            "threads, or the GPUs, are divided. By default one: with keys in a process of its own, else in the "
            "server's.",
            ENGINE,
        ),
    ] = None

    @property
    def num_processes(self) -> int:
        """Processes that answer, 0 for the server's own: what tenants send is read in another than the steps are."""
        if self.replicas is not None:
            return self.replicas if self.replicas > 1 else 0
        return 0 if self.config.keys is None else 1
