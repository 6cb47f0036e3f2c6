"""AccessRecord: what the access log says of a request: by whom, for what, how it ended and how long it took."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from polyvera.server.api_keys import Caller
from polyvera.store.reference import AdapterRef


@dataclass(slots=True)
class AccessRecord:
    """What is known of a request so far. path: without its query. trace: the client's traceparent."""

    id: str
    method: str
    path: str
    client: str
    trace: str = ""
    caller: Caller | None = None
    adapter: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    is_whole: bool = False
    since: float = field(default_factory=monotonic)
    first_byte: float = 0.0
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def use(self, adapter: AdapterRef | None, prompt_tokens: int, completion_tokens: int) -> None:
        """What it has used; '' is the base."""
        self.adapter = "" if adapter is None else str(adapter)
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def row(self) -> dict[str, Any]:
        """The line. is_whole: false where the client had gone, or the answer broke off."""
        now = monotonic()
        tenant, key = ("", "") if self.caller is None else (self.caller.tenant, self.caller.key)
        return {
            "time": self.at.isoformat(timespec="milliseconds"),
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "is_whole": self.is_whole,
            "tenant": tenant,
            "key": key,
            "adapter": self.adapter,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_byte_s": round((self.first_byte or now) - self.since, 4),
            "duration_s": round(now - self.since, 4),
        } | ({"traceparent": self.trace} if self.trace else {})


CURRENT: ContextVar[AccessRecord | None] = ContextVar("polyvera_access_record", default=None)
