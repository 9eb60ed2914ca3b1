"""Traces as a real OTLP collector receives them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

SCRIPT = """
import asyncio, logging, sys
import grpc
from opentelemetry import trace
from services.common import logs, rpc, settings, tracing
from services.common.errors import UnavailableError
from services.common.settings import Address, ServiceSettings

def add_to_server(servicer, server):
    async def unary(request, context):
        logging.getLogger("handler").info("handling")
        if request == b"fail":
            raise UnavailableError("no")
        return b"ok"
    async def stream(request, context):
        yield b"one"
        yield b"two"
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("example.v1.X", handlers),))
    server.add_registered_method_handlers("example.v1.X", handlers)

async def main():
    chosen = settings.load(ServiceSettings, grpc_bind_address="127.0.0.1:0", service_token="s" * 20)
    with tracing.exporting("example", chosen.otel_exporter_otlp_endpoint):
        async with (
            rpc.serving(chosen, [rpc.registration(add_to_server, None)], authorizer=rpc.authorizer(chosen)) as server,
            rpc.channel(Address("127.0.0.1", server.port), token="s" * 20) as channel,
        ):
            with trace.get_tracer("test").start_as_current_span("root"):
                print("carrier", sorted(tracing.carrier()), flush=True)
                await channel.unary_unary("/example.v1.X/Unary")(b"x")
                try:
                    await channel.unary_unary("/example.v1.X/Unary")(b"fail")
                except grpc.aio.AioRpcError:
                    pass
                assert [x async for x in channel.unary_stream("/example.v1.X/Stream")(b"x")] == [b"one", b"two"]

logs.configure("example")
asyncio.run(main())
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[object] = []

    async def Export(self, request: object, context: object) -> object:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


async def run(folder: Path, **environment: str) -> str:
    script = folder / "traced.py"
    script.write_text(SCRIPT)
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(script), env=clean | environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_spans_of_client_and_server_are_one_trace(tmp_path: Path) -> None:
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    out = await run(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    await server.stop(None)
    spans = {span.span_id: span for span in collector.spans}
    assert len({span.trace_id for span in spans.values()}) == 1
    served = [span for span in spans.values() if span.kind == span.SPAN_KIND_SERVER]
    assert sorted(span.name for span in served) == ["example.v1.X/Stream"] + ["example.v1.X/Unary"] * 2
    assert all(spans[span.parent_span_id].kind == span.SPAN_KIND_CLIENT for span in served)
    codes = {
        attribute.value.int_value
        for span in served
        for attribute in span.attributes
        if "status" in attribute.key
    }
    assert codes == {0, 14}
    assert [span.status.code for span in served].count(2) == 1
    line = next(json.loads(line) for line in out.splitlines() if '"handling"' in line)
    assert bytes.fromhex(line["span.id"]) in {span.span_id for span in served}
    assert "carrier ['traceparent']" in out


async def test_without_an_endpoint_nothing_is_traced(tmp_path: Path) -> None:
    out = await run(tmp_path)
    assert "carrier []" in out
    assert "trace.id" not in out
