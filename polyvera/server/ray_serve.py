"""Deployment: replicas of the engine on a Ray cluster. `serve run polyvera.server.ray_serve:app model=... store=...`

Each replica is one engine with every adapter and a full batch of its own: requests are spread over the replicas as they
come, never by adapter. The store is all that the replicas share.
"""

# Annotations are values here: Ray reads that of app() to make its argument of a YAML file's.

from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from ray import serve
from ray.serve import Application

from polyvera.errors import EngineError, ServeError
from polyvera.replicas.messages import Start
from polyvera.replicas.replica_main import engine_of
from polyvera.server.app import make_app
from polyvera.server.config import ACCESS, ServedModel
from polyvera.server.metrics import Metrics
from polyvera.server.usage import UsageStore
from polyvera.settings.field import STORE, Count, Described, Positive

RAY = "Ray"
SLACK_S = 10.0  # from the last answer to the end of the process


class Deployment(ServedModel):
    """What a cluster runs: the arguments of app(), of a YAML file's `args` or of `serve run`'s NAME=VALUE.

    model, store and keys are at the same place on every machine. What `polyvera serve` counts of all replicas together
    (max_waiting, max_per_tenant) is of each here.
    """

    what: ClassVar[str] = "deployment"

    store: Annotated[str, STORE]
    without_keys: Annotated[bool, Described("Whoever reaches Ray's proxy may do everything.", ACCESS)] = False
    num_replicas: Annotated[Count, Described("Engines.", RAY)] = 1
    num_cpus: Annotated[Positive, Described("Processors of each replica.", RAY)] = 1.0
    num_gpus: Annotated[float, Ge(0), Described("GPUs of each replica.", RAY)] = 0.0
    autoscaling: Annotated[
        dict[str, Any] | None,
        Described("Ray's autoscaling_config, instead of num_replicas; max_rows is its target by default.", RAY),
    ] = None

    @property
    def start(self) -> Start:
        """What an engine is made of."""
        device = "cuda" if self.num_gpus else "cpu"
        threads = max(1, int(self.num_cpus))
        return Start(self.model, self.store, self.limits, threads, device, self.task)

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is told of the replicas."""
        limits, drain_s = self.limits, self.config.drain_s
        scale: dict[str, Any] = {"num_replicas": self.num_replicas}
        if self.autoscaling is not None:
            scale = {"autoscaling_config": {"target_ongoing_requests": limits.max_rows, **self.autoscaling}}
        return scale | {
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
            "max_ongoing_requests": limits.max_rows + limits.max_waiting,  # Ray's own 5 would leave the batch empty
            "graceful_shutdown_timeout_s": drain_s + SLACK_S,
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
        usage = UsageStore(self._config.usage)  # the default would be one file of many machines
        return make_app(self._engine, self._config, self._metrics, usage=usage)

    def check_health(self) -> None:
        """Raises EngineError where the engine has failed; Ray then replaces the replica."""
        if self._engine.failed is not None:
            raise EngineError("the engine has stopped after an error of its own")

    def __del__(self) -> None:
        """Ray calls it when the last answers have ended."""
        if hasattr(self, "_engine"):
            self._engine.stop()


def app(given: Deployment) -> Application:
    """The application for `serve run`, a YAML file's import_path, or serve.run().

    Raises ServeError for a place that is not the same on every machine, or without keys.
    """
    keys = given.config.keys
    for word, place in (("store", given.store), ("keys", keys)):
        if place is not None and "://" not in str(place) and not Path(place).is_absolute():
            raise ServeError(f"{word}={str(place)!r}: a replica may run on any machine; give a URL or a whole path")
    if keys is None and not given.without_keys:
        raise ServeError(
            "there are no keys, and Ray's proxy may be reached from other machines: make some with `polyvera keys FILE "
            "--add TENANT` and give keys=FILE; or give without_keys=true, so that whoever reaches it may do everything"
        )
    deployed = serve.deployment(name="polyvera")(serve.ingress()(Deployed))
    return deployed.options(**given.options).bind(given)
