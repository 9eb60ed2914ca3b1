"""JSON logs on stdout with ECS names and trace ids, for structlog and the stdlib; it routes nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog
from opentelemetry import trace

_MESSAGE_CHARACTERS_MAX: Final = 8_192
_OURS: Final = "services"
_QUIET: Final = ("grpc", "asyncio", "opentelemetry")

EventDict = MutableMapping[str, Any]


def configure(
    service_name: str, level: str = "INFO", *, node: str | None = None, output: TextIO | None = None
) -> None:
    """Sends all logging of the process to `output` (stdout) as one JSON object per line. May be called again.

    DEBUG is for what the services say themselves; of libraries there is nothing below INFO.

    Fields: @timestamp, log.level, log.logger, message, service.name, service.node.name where `node` says which
    process of a service this is, trace.id and span.id inside a span, error.type, error.message and
    error.stack_trace for exceptions, and whatever the caller adds.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="@timestamp"),
        _Ecs(service_name, node),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # At DEBUG libraries tell what passes through them, headers with tokens among it.
    root.setLevel(max(logging.INFO, logging.getLevelName(level)))
    logging.getLogger(_OURS).setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.captureWarnings(True)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A structured logger: `log.info("session opened", **{"master.id": 7})`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


class _Ecs:
    """Renames structlog's keys to those of the Elastic Common Schema and adds what every line has."""

    def __init__(self, service_name: str, node: str | None) -> None:
        self._service_name = service_name
        self._node = node

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        event["message"] = str(event.pop("event", ""))[:_MESSAGE_CHARACTERS_MAX]
        event["log.level"] = event.pop("level", method)
        event["log.logger"] = event.pop("logger", "")
        event["service.name"] = self._service_name
        if self._node is not None:
            event["service.node.name"] = self._node
        self._add_error(event)
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            event["trace.id"] = trace.format_trace_id(span.trace_id)
            event["span.id"] = trace.format_span_id(span.span_id)
        return event

    def _add_error(self, event: EventDict) -> None:
        info = event.pop("exc_info", None)
        record = event.get("_record")
        if info is None and record is not None:
            info = record.exc_info
        if not info:
            return
        if isinstance(info, BaseException):
            info = (type(info), info, info.__traceback__)
        elif not isinstance(info, tuple):
            info = sys.exc_info()
        if info[0] is None:
            return
        event["error.type"] = info[0].__name__
        event["error.message"] = str(info[1])[:_MESSAGE_CHARACTERS_MAX]
        event["error.stack_trace"] = structlog.processors.format_exc_info(
            logger=None, name="", event_dict={"exc_info": info}
        )["exception"]
