"""OpenTelemetry traces, off unless an exporter is configured; it measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_enabled = False


@contextmanager
def exporting(service_name: str, endpoint: str | None) -> Iterator[None]:
    """Exports this process's spans to the OTLP gRPC endpoint while the block runs; does nothing without an
    endpoint.

    Queue and batches are bounded by OpenTelemetry's OTEL_BSP_… variables (2,048 spans, then spans are
    dropped).
    """
    global _enabled
    if endpoint is None:
        yield
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://")))
    )
    trace.set_tracer_provider(provider)
    _enabled = True
    try:
        yield
    finally:
        _enabled = False
        provider.shutdown()


def enabled() -> bool:
    """Whether spans are exported."""
    return _enabled


@contextmanager
def server_span(
    service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]
) -> Iterator[trace.Span]:
    """A span around a call that we serve, child of the caller's span if its metadata names one."""
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    with trace.get_tracer(__name__).start_as_current_span(
        f"{service}/{method}",
        context=propagate.extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def carrier() -> Mapping[str, str]:
    """What to hand on with a message so that its trace goes on where it is read; empty when off."""
    entries: dict[str, str] = {}
    if _enabled:
        propagate.inject(entries)
    return entries
