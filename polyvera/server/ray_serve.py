"""Deployment: replicas of the engine on a Ray cluster. `serve run polyvera.server.ray_serve:app model=... store=...`

Each replica is one engine with every adapter and a full batch of its own: requests are spread over the replicas as they
come, never by adapter. The store is all that the replicas share.
"""

# Annotations are values here: Ray reads that of app() to make its argument of a YAML file's.

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from ray import serve
from ray.serve import Application

from polyvera.engine.limits import Limits
from polyvera.errors import ServeError
from polyvera.replicas.messages import Start
from polyvera.replicas.replica_main import engine_of
from polyvera.server.app import make_app
from polyvera.server.config import ServerConfig
from polyvera.server.metrics import Metrics

MIB = 1 << 20
SLACK_S = 10.0  # from the last answer to the end of the process


class Deployment(BaseModel):
    """What a cluster runs: the arguments of app(), of a YAML file's `args` or of `serve run`'s NAME=VALUE.

    model, store, keys: as of `polyvera serve`, at the same place on every machine. without_keys: that whoever reaches
    Ray's proxy may do everything. name: what clients call the base. max_rows to pin: of each replica, as the flags of
    `polyvera serve`; max_waiting and max_per_tenant are of each, too. num_cpus, num_gpus: of each replica.
    autoscaling: Ray's autoscaling_config, in place of num_replicas; target_ongoing_requests is max_rows by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    store: str
    keys: Path | None = None
    without_keys: bool = False
    name: str | None = None
    max_rows: PositiveInt = 64
    max_context: PositiveInt | None = None
    max_waiting: PositiveInt = 1024
    max_per_tenant: PositiveInt = 256
    slots: PositiveInt = 1024
    host_mib: PositiveInt = 1024
    prefix_mib: int = Field(256, ge=0)
    pin: tuple[str, ...] = ()
    open_metrics: bool = False
    allow_host: tuple[str, ...] = ()
    drain_s: PositiveFloat = 30.0
    num_replicas: PositiveInt = 1
    num_cpus: PositiveFloat = 1.0
    num_gpus: float = Field(0.0, ge=0)
    autoscaling: dict[str, Any] | None = None

    @property
    def start(self) -> Start:
        """What an engine is made of."""
        limits = Limits(
            max_rows=self.max_rows,
            max_context=self.max_context,
            max_waiting=self.max_waiting,
            num_slots=self.slots,
            host_bytes=self.host_mib * MIB,
            prefix_bytes=self.prefix_mib * MIB,
        )
        device = "cuda" if self.num_gpus else "cpu"
        return Start(self.model, self.store, limits, threads=max(1, int(self.num_cpus)), device=device)

    @property
    def config(self) -> ServerConfig:
        """What the app of a replica takes on."""
        return ServerConfig(
            base=self.name or self.model.rstrip("/").rpartition("/")[2].rpartition(":")[2],
            keys=self.keys,
            max_per_tenant=self.max_per_tenant,
            drain_s=self.drain_s,
            is_metrics_open=self.open_metrics,
            hosts=self.allow_host,
        )

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is told of the replicas."""
        scale: dict[str, Any] = {"num_replicas": self.num_replicas}
        if self.autoscaling is not None:
            scale = {"autoscaling_config": {"target_ongoing_requests": self.max_rows, **self.autoscaling}}
        return scale | {
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
            "max_ongoing_requests": self.max_rows + self.max_waiting,  # Ray's own 5 would leave the batch empty
            "graceful_shutdown_timeout_s": self.drain_s + SLACK_S,
        }


class Deployed:
    """One replica in a process of Ray's: an engine, and its app, which Ray mounts."""

    def __init__(self, given: Deployment) -> None:
        self._config, self._metrics = given.config, Metrics()
        self._engine = engine_of(given.start, self._metrics.observe).start()
        for one in given.pin:
            assert self._engine.registry is not None
            self._engine.pin(self._engine.registry.resolve(one))

    def __serve_build_asgi_app__(self) -> Any:
        """The app, which Ray asks for after the constructor."""
        return make_app(self._engine, self._config, self._metrics)

    def check_health(self) -> None:
        """Raises ServeError where the engine has failed; Ray then replaces the replica."""
        if self._engine.failed is not None:
            raise ServeError("the engine has stopped after an error of its own")

    def __del__(self) -> None:
        """Ray calls it when the last answers have ended."""
        if hasattr(self, "_engine"):
            self._engine.stop()


def app(given: Deployment) -> Application:
    """The application for `serve run`, a YAML file's import_path, or serve.run().

    Raises ServeError for a place that is not the same on every machine, or without keys.
    """
    for word, place in (("store", given.store), ("keys", given.keys)):
        if place is not None and "://" not in str(place) and not Path(place).is_absolute():
            raise ServeError(f"{word}={str(place)!r}: a replica may run on any machine; give a URL or a whole path")
    if given.keys is None and not given.without_keys:
        raise ServeError(
            "there are no keys, and Ray's proxy may be reached from other machines: make some with `polyvera keys FILE "
            "--add TENANT` and give keys=FILE; or give without_keys=true, so that whoever reaches it may do everything"
        )
    deployed = serve.deployment(name="polyvera")(serve.ingress()(Deployed))
    return deployed.options(**given.options).bind(given)
