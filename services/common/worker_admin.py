"""The one admin port of a service that runs as several workers: asks each of them and joins what they say."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from services.common import admin
from services.common.settings import Address

_ASKED_AT_ONCE: Final = 8
_ANSWER_SECONDS: Final = 4.0
_ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
_PARENT: Final = "parent"


class Worker(Protocol):
    """What is known here of a worker."""

    number: int
    restarts: int
    admin_port: int | None

    @property
    def is_running(self) -> bool:
        """Whether it has a process."""
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """A worker's answer; 503 stands for none."""

    worker: Worker
    status: int
    body: bytes


@asynccontextmanager
async def serving(address: Address, workers: Sequence[Worker]) -> AsyncIterator[int]:
    """Serves /metrics, /health and /ready of all workers until the block ends; gives the port.

    /metrics has every worker's metrics, each with a label `worker`. /health and /ready are 200 while every worker's
    is; their JSON has what each one says.

    Raises:
        ConfigurationError: the address is in use or cannot be bound.
    """
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="worker admin") as threads:
        async with admin.answering(address, _Joined(workers, threads)) as port:
            yield port


class _Joined:
    """WSGI: three paths, GET only."""

    def __init__(self, workers: Sequence[Worker], threads: ThreadPoolExecutor) -> None:
        self._workers = workers
        self._threads = threads
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)

    def __call__(self, environ: dict[str, Any], start_response: admin.StartResponse) -> Iterable[bytes]:
        return admin.answer(environ, start_response, self._paths())

    def _paths(self) -> dict[str, Callable[[], tuple[bool, str, bytes]]]:
        return {
            "/metrics": self._metrics,
            "/health": lambda: self._all("/health", ("ok", "not well")),
            "/ready": lambda: self._all("/ready", ("ready", "not ready")),
        }

    def _ask_all(self, path: str) -> list[_Answer]:
        return list(self._threads.map(lambda worker: _ask(worker, path), self._workers))

    def _all(self, path: str, words: tuple[str, str]) -> tuple[bool, str, bytes]:
        answers = self._ask_all(path)
        fine = all(answer.status == http.client.OK for answer in answers)
        said = {str(answer.worker.number): _said(answer) for answer in answers}
        body = {"status": words[0] if fine else words[1], "workers": said}
        return fine, "application/json", json.dumps(body).encode() + b"\n"

    def _metrics(self) -> tuple[bool, str, bytes]:
        families: dict[str, Metric] = {}
        for name, metrics in self._all_metrics():
            for metric in metrics:
                joined = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                for sample in metric.samples:
                    labels = {**sample.labels, "worker": name}
                    joined.samples.append(sample._replace(labels=labels))
        registry = CollectorRegistry()
        registry.register(_Found([*families.values(), *self._about_workers()]))
        return True, CONTENT_TYPE_LATEST, generate_latest(registry)

    def _all_metrics(self) -> Iterator[tuple[str, Iterable[Metric]]]:
        yield _PARENT, self._own.collect()
        for answer in self._ask_all("/metrics"):
            if answer.status == http.client.OK:
                yield (
                    str(answer.worker.number),
                    text_string_to_metric_families(answer.body.decode("utf-8", "replace")),
                )

    def _about_workers(self) -> list[Metric]:
        up = GaugeMetricFamily("worker_up", "1 while the worker's process runs, else 0.", labels=["worker"])
        restarts = CounterMetricFamily(
            "worker_restarts", "How often a worker died and was started again.", labels=["worker"]
        )
        for worker in self._workers:
            up.add_metric([str(worker.number)], float(worker.is_running))
            restarts.add_metric([str(worker.number)], worker.restarts)
        return [up, restarts]


class _Found:
    """A collector of metrics that are there already."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._metrics


def _ask(worker: Worker, path: str) -> _Answer:
    port = worker.admin_port
    if not worker.is_running or port is None:
        return _Answer(worker, http.client.SERVICE_UNAVAILABLE, b"")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return _Answer(worker, response.status, response.read(_ANSWER_BYTES_MAX))
    except (OSError, http.client.HTTPException):
        return _Answer(worker, http.client.SERVICE_UNAVAILABLE, b"")
    finally:
        connection.close()


def _said(answer: _Answer) -> object:
    if not answer.worker.is_running:
        return {"status": "down"}
    if answer.worker.admin_port is None:
        return {"status": "starting"}
    try:
        return json.loads(answer.body)
    except ValueError:
        return {"status": "silent"}
