"""Each request is a span of the trace that its client began."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from polyvera.errors import ServeError
from polyvera.server.access_log import AccessRecord
from polyvera.server.api_keys import Caller
from polyvera.server.tracing import RequestTracer, tracer_to
from polyvera.store.reference import AdapterRef


def test_a_span_has_the_clients_trace_and_what_was_used() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace, parent = "a" * 32, "b" * 16
    record = AccessRecord("id", "POST", "/v1/completions", "", trace=f"00-{trace}-{parent}-01", status=200)
    record.caller = Caller("acme", (), base=False, admin=False)
    record.use(AdapterRef("acme/one", 3, "", 0), 5, 2)
    tracer = RequestTracer(provider)
    tracer.add(record, "/v1/completions")
    tracer.close()
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /v1/completions" and span.parent is not None
    assert f"{span.context.trace_id:032x}" == trace and f"{span.parent.span_id:016x}" == parent
    assert span.attributes is not None and span.attributes["gen_ai.request.model"] == "acme/one@3"
    assert span.attributes["gen_ai.usage.output_tokens"] == 2 and span.attributes["polyvera.tenant"] == "acme"
    assert [event.name for event in span.events] == ["first byte"]
    assert span.start_time is not None and span.end_time is not None and span.start_time <= span.end_time


def test_no_endpoint_is_no_tracer_and_a_missing_exporter_is_told() -> None:
    assert tracer_to(None) is None
    try:
        import opentelemetry.exporter.otlp.proto.http  # noqa: F401
    except ImportError:
        with pytest.raises(ServeError, match=r"pip install 'polyvera\[otel\]'"):
            tracer_to("http://127.0.0.1:4318/v1/traces")
