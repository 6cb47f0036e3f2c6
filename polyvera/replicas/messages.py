"""The messages between a server and its replicas, as JSON that is validated on arrival."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from torch import Tensor

from polyvera import errors
from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.embedding.request import Classes, EncodeRequest
from polyvera.engine.generation.request import Request, SamplingParams, Token
from polyvera.engine.limits import Limits
from polyvera.engine.stats import RunningRequest
from polyvera.errors import EngineError, FormatError, PolyveraError, SamplingError
from polyvera.model.answer import Meaning
from polyvera.model.config import AUTO_TASK
from polyvera.model.pooling import Pooling
from polyvera.model.task import LM, THRESHOLD
from polyvera.store.reference import AdapterRef

# --- to a replica ---


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: what to load.

    model, task: as load_base() takes them. store: the URL of a registry. threads: of the CPU. device: such as 'cpu',
    'cuda:1'.
    """

    model: str
    store: str | None
    limits: Limits
    threads: int = 1
    device: str = "cpu"
    task: str = AUTO_TASK
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Submit:
    """Asks for an answer to a prompt. Accepted says whether it will be made; then come Deltas.

    number: of the request, which the replies repeat. prompt: tokens. adapter: None is the base.
    """

    number: int
    prompt: tuple[int, ...]
    adapter: AdapterRef | None
    params: SamplingParams
    tenant: str
    weight: float = 1.0
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True, slots=True)
class Encode:
    """Asks for the vectors of texts, or for their classes. The replies are Accepted and, unless refused, EncodeDone.

    rows: the tokens of each text. adapter, number: as in Submit.
    """

    number: int
    rows: tuple[tuple[int, ...], ...]
    adapter: AdapterRef | None
    tenant: str
    is_classes: bool
    weight: float = 1.0
    kind: Literal["encode"] = "encode"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancels a Submit or an Encode."""

    number: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class Command:
    """What to do with one adapter. CommandDone reports the result."""

    number: int
    name: Literal["preload", "pin", "unpin", "evict"]
    adapter: AdapterRef
    timeout_s: float
    kind: Literal["command"] = "command"


@dataclass(frozen=True, slots=True)
class GetStats:
    """Asks what runs and is resident. Stats is the reply."""

    number: int
    kind: Literal["get_stats"] = "get_stats"


# --- from a replica ---


@dataclass(frozen=True, slots=True)
class Fault:
    """An error: the name of its class, its message, what else it says: seconds to a retry, the field that is wrong."""

    name: str
    message: str
    retry_s: float | None = None
    param: str | None = None

    def error(self) -> PolyveraError:
        """The error itself; an EngineError if its class is not one of polyvera's."""
        known = getattr(errors, self.name, None)
        if not (isinstance(known, type) and issubclass(known, PolyveraError)):
            return EngineError(f"{self.name}: {self.message}")
        more = {"retry_s": self.retry_s, "param": self.param}
        return known(self.message, **{name: value for name, value in more.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine runs. limits: without None. fingerprint, dtype: of the model. pooling: of an encoder, else None."""

    fingerprint: str
    dtype: str
    num_tokens: int
    limits: Limits
    pooling: Pooling | None = None
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Fatal:
    """The replica cannot start or cannot continue."""

    fault: Fault
    kind: Literal["fatal"] = "fatal"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A Submit or an Encode was accepted, or refused with a fault."""

    number: int
    fault: Fault | None = None
    kind: Literal["accepted"] = "accepted"


@dataclass(frozen=True, slots=True)
class Delta:
    """The next RequestOutput of an answer.

    num_reused: tokens of the prompt whose keys and values were cached. prompt: its tokens, where they were asked for.
    """

    number: int
    tokens: tuple[Token, ...]
    text: str
    finish_reason: str | None
    fault: Fault | None
    num_reused: int
    prompt: tuple[Token, ...] = ()
    kind: Literal["delta"] = "delta"


@dataclass(frozen=True, slots=True)
class EncodeDone:
    """The reply to an Encode.

    labels: of a head's outputs, () for vectors. width: numbers for each text, or each token. numbers: (texts or tokens,
    width), fp32 bytes. fault: why there are none. task, threshold: as in Meaning.
    """

    number: int
    labels: tuple[str, ...] = ()
    width: int = 0
    numbers: bytes = b""
    fault: Fault | None = None
    task: str = LM
    threshold: float = THRESHOLD
    kind: Literal["encode_done"] = "encode_done"

    def tensor(self) -> Tensor:
        """The numbers, (texts or tokens, width)."""
        return torch.frombuffer(bytearray(self.numbers), dtype=torch.float32).view(-1, self.width)

    @property
    def meaning(self) -> Meaning:
        """What the columns stand for."""
        return Meaning(self.task, self.labels, self.threshold)


@dataclass(frozen=True, slots=True)
class CommandDone:
    """The result of a Command."""

    number: int
    fault: Fault | None = None
    kind: Literal["command_done"] = "command_done"


@dataclass(frozen=True, slots=True)
class Stats:
    """The fields of an EngineStats."""

    number: int
    running: tuple[RunningRequest, ...]
    waiting: int
    resident: tuple[ResidentAdapter, ...]
    num_slots: int
    totals: dict[str, int]
    waiting_adapters: tuple[str, ...] = ()
    kind: Literal["stats"] = "stats"


@dataclass(frozen=True, slots=True)
class Timing:
    """A duration that the engine measured, such as 'step_s'."""

    name: str
    seconds: float
    kind: Literal["timing"] = "timing"


ToReplica = Start | Submit | Encode | Cancel | Command | GetStats
FromReplica = Ready | Fatal | Accepted | Delta | EncodeDone | CommandDone | Stats | Timing
Message = ToReplica | FromReplica
AS_JSON = ConfigDict(ser_json_inf_nan="constants", ser_json_bytes="base64", val_json_bytes="base64")
TO_REPLICA: TypeAdapter[ToReplica] = TypeAdapter(Annotated[ToReplica, Field(discriminator="kind")], config=AS_JSON)
FROM_REPLICA: TypeAdapter[FromReplica] = TypeAdapter(
    Annotated[FromReplica, Field(discriminator="kind")], config=AS_JSON
)
ANY: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")], config=AS_JSON)


def asked(request: Request | EncodeRequest) -> Submit | Encode:
    """The message that asks a replica for a request."""
    if isinstance(request, EncodeRequest):
        rows = tuple(map(tuple, request.rows))
        return Encode(request.number, rows, request.adapter, request.tenant, request.is_classes, request.weight)
    prompt = tuple(request.prompt)
    return Submit(request.number, prompt, request.adapter, request.params, request.tenant, request.weight)


def encoded(number: int, found: Tensor | Classes) -> EncodeDone:
    """The reply with an encoder's result. found: vectors (texts, width) in fp32 on the CPU, or classes."""
    meaning, numbers = (found.meaning, found.probs) if isinstance(found, Classes) else (Meaning(), found)
    done = EncodeDone(number, meaning.labels, numbers.shape[1], numbers.numpy().tobytes())
    return replace(done, task=meaning.task, threshold=meaning.threshold)


def fault_of(error: BaseException) -> Fault:
    """An error as a message carries it."""
    return Fault(type(error).__name__, str(error), getattr(error, "retry_s", None), getattr(error, "param", None))


def written(message: Message) -> bytes:
    """A message as JSON. Raises SamplingError for a value that the other end would refuse, such as half a character."""
    try:
        return ANY.dump_json(message, warnings="error")
    except PydanticSerializationError as error:
        raise SamplingError(f"the request has a value that cannot be sent to a replica: {error}") from None


def read(data: bytes, known: TypeAdapter[Any]) -> Any:
    """The message in these bytes. Raises FormatError for an invalid one."""
    try:
        return known.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"a message between two processes is damaged: {where}: {first['msg']}") from None
