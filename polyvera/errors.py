"""Every error that polyvera raises on purpose.

PolyveraError
├── SpecError          a method, rank, target or other choice that cannot be (also a ValueError)
│   ├── TargetError    targets that match no layer
│   └── BasisError     a basis that is not the one an adapter was trained with
├── SlotError          a slot that does not exist, is empty or does not fit (also a LookupError)
├── LayoutError        an adapter that does not fit this model or this bank
│   └── FingerprintError  an adapter of another base model
├── FormatError        bytes that are not a whole, valid adapter file
│   └── DamagedFileError  a file of a store that is not what was published there
├── StoreError         a store that cannot do what was asked
│   ├── ReferenceNameError  a name that is not a valid adapter name
│   ├── NotFoundError  no such adapter, version or alias (also a LookupError)
│   │   ├── UnpublishedNameError  a name that nobody published, told with those that are there
│   │   └── UnknownObjectError  no such file or job of this tenant's
│   ├── ConflictError  what is asked for conflicts with what is stored
│   ├── StoreFullError  no room is left where the store lies
│   └── StoreUnavailableError  a store that cannot be reached, read or written at the moment
├── ServeError         a model, setting or request that cannot be served
│   ├── SamplingError  a sampling choice that cannot be, or a prompt that doesn't fit (also a ValueError)
│   │   └── ContextLengthError  a prompt longer than the context
│   ├── BusyError      too many requests at the moment
│   │   └── QuotaError  more than a tenant may have
│   ├── SizeError      more bytes than are taken
│   ├── SlowError      bytes that come too slowly
│   ├── ClosedError    the engine is stopping, or has stopped
│   │   └── DisconnectedError  the client has gone
│   ├── KeyFileError   a file of keys that cannot be read, or is none
│   └── AccessError    a key that is missing or unknown
│       └── ForbiddenError  a known key that is not allowed to do this
├── EngineError        the engine has failed: no fault of the request
│   └── NonFiniteError  a model and adapter gave numbers that are not finite
├── DataError          training or evaluation data that cannot be used
│   └── PromptError    a text or conversation that cannot be turned into tokens
└── RecipeError        a recipe with an unknown key or an impossible value
    └── DivergedError  training whose loss is no longer a finite number
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PolyveraError(Exception):
    """The root of all errors raised here on purpose."""


class SpecError(PolyveraError, ValueError):
    """A method, rank, target or other choice that cannot be."""


class TargetError(SpecError):
    """Targets that match no layer of the model."""


class BasisError(SpecError):
    """A basis that is not the one an adapter was trained with."""


class SlotError(PolyveraError, LookupError):
    """A slot that does not exist, is empty, or does not fit the batch."""


class LayoutError(PolyveraError, ValueError):
    """An adapter that does not fit this model or this bank."""


class FingerprintError(LayoutError):
    """An adapter that was trained on another base model."""


class FormatError(PolyveraError, ValueError):
    """Bytes that are not a whole, valid adapter file."""


class DamagedFileError(FormatError):
    """A file of a store that is not what was published there."""


class StoreError(PolyveraError):
    """A store that cannot do what was asked."""


class ReferenceNameError(StoreError, ValueError):
    """A name that is not a valid adapter name."""


class NotFoundError(StoreError, LookupError):
    """No such adapter, version or alias."""


class UnpublishedNameError(NotFoundError):
    """A name that nobody published. Its words are for whoever may see the whole store: where it is, and other names."""


class UnknownObjectError(NotFoundError):
    """No such file or job of this tenant's."""


class ConflictError(StoreError):
    """What is asked for conflicts with what is stored."""


class StoreFullError(StoreError):
    """No room is left where the store lies."""


class StoreUnavailableError(StoreError):
    """A store that cannot be reached, read or written at the moment."""


class ServeError(PolyveraError):
    """A model, setting or request that cannot be served. param: the field of a request that is wrong."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class SamplingError(ServeError, ValueError):
    """A sampling choice that cannot be, or a prompt that does not fit."""


class ContextLengthError(SamplingError):
    """A prompt that, with the answer asked for, is longer than the context."""


class BusyError(ServeError):
    """Too many requests at the moment. retry_s: when it may be worth another try."""

    def __init__(self, message: str, retry_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class QuotaError(BusyError):
    """More than a tenant may have, such as a budget of tokens that is used up until another day."""


class SizeError(ServeError):
    """More bytes than are taken."""


class SlowError(ServeError):
    """Bytes that come too slowly."""


class ClosedError(ServeError):
    """The engine is stopping, or has stopped."""


class DisconnectedError(ClosedError):
    """The client has gone before its answer."""


class KeyFileError(ServeError):
    """A file of keys that cannot be read, or is none."""


class AccessError(ServeError):
    """A key that is missing or unknown."""


class ForbiddenError(AccessError):
    """A known key that is not allowed to do this, or an open server reached by a way that it does not answer."""


class EngineError(PolyveraError):
    """The engine has failed: no fault of the request."""


class NonFiniteError(EngineError):
    """A model and adapter gave numbers that are not finite."""


class DataError(PolyveraError, ValueError):
    """Training or evaluation data that cannot be used."""


class PromptError(DataError):
    """A text or conversation that cannot be turned into tokens."""


class RecipeError(PolyveraError, ValueError):
    """A recipe with an unknown key or an impossible value."""


class DivergedError(RecipeError):
    """Training whose numbers cannot be kept: not finite, too large, or far worse than none."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, or an empty string."""
    near = get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException, limit: int) -> str:
    """The message of an error of another library: its words in one line, `limit` characters at most."""
    words = f"unknown {error}" if type(error) is KeyError else str(error)
    return " ".join(words.split())[:limit] or type(error).__name__


def message_of(error: BaseException) -> str:
    """An error in one line: our own as it is, another with the name of its type."""
    if isinstance(error, PolyveraError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
