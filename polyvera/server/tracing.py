"""RequestTracer: a span of OpenTelemetry for each request, within the trace that its client began."""

from __future__ import annotations

from typing import Any

from polyvera.errors import ServeError
from polyvera.server.access_log import AccessRecord

SERVICE = "polyvera"
INSTALL = "pip install 'polyvera[otel]'"


class RequestTracer:
    """Makes the spans, with the names of OpenTelemetry's conventions for HTTP and for models. provider: of the SDK."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import propagate

        self._provider, self._extract = provider, propagate.extract
        self._tracer = provider.get_tracer(SERVICE)

    def add(self, record: AccessRecord, route: str) -> None:
        """The span of a request that has ended."""
        row, begun = record.row(), int(1e9 * record.at.timestamp())
        context = self._extract({"traceparent": record.trace}) if record.trace else None
        span = self._tracer.start_span(
            f"{record.method} {route}", context, start_time=begun, attributes=_attributes(row)
        )
        span.add_event("first byte", timestamp=begun + int(1e9 * row["first_byte_s"]))
        span.end(begun + int(1e9 * row["duration_s"]))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _attributes(row: dict[str, Any]) -> dict[str, Any]:
    named = {
        "http.request.method": row["method"],
        "url.path": row["path"],
        "http.response.status_code": row["status"],
        "gen_ai.request.model": row["adapter"],
        "gen_ai.usage.input_tokens": row["prompt_tokens"],
        "gen_ai.usage.output_tokens": row["completion_tokens"],
        "polyvera.request_id": row["id"],
        "polyvera.tenant": row["tenant"],
    }
    return {name: value for name, value in named.items() if value not in ("", None)}


def tracer_to(endpoint: str | None) -> RequestTracer | None:
    """A tracer that sends spans to an OTLP endpoint over HTTP, in batches, by a thread of its own; None for none.

    Raises ServeError where OpenTelemetry's SDK or exporter is not installed.
    """
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ServeError(f"--otlp-traces-endpoint needs OpenTelemetry ({error.name}): {INSTALL}") from None
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return RequestTracer(provider)
