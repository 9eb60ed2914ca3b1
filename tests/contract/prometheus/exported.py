"""Says what a service exports, by its own registry; a program, since a registry belongs to the whole process.

python -m tests.contract.prometheus.exported ingest
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from services.common import worker_admin
from services.common.settings import Address

SERVICES = ("ingest", "fanout", "ledger", "risk")
WITH_WORKERS = ("ingest", "fanout")
TARGET_LABELS = frozenset({"job", "instance"})
REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS_MAX = 60

Samples = dict[str, dict[str, list[str]]]
"""Of each sample's name the labels, and of each label the values that it has from the start."""


@dataclass(frozen=True)
class Vocabulary:
    """Everything that Prometheus can have of a service."""

    samples: Samples
    job: str

    def labels(self, name: str) -> frozenset[str]:
        """The labels of a sample, with those that scraping adds."""
        worker = {"worker"} if self.job in WITH_WORKERS else set()
        return TARGET_LABELS | worker | frozenset(self.samples[name])


@cache
def vocabularies() -> dict[str, Vocabulary]:
    """What each service exports, and what the one admin port of several workers adds."""
    found = {}
    for service in SERVICES:
        command = [sys.executable, "-m", "tests.contract.prometheus.exported", service]
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=SECONDS_MAX
        )
        assert done.returncode == 0, done.stderr
        samples: Samples = json.loads(done.stdout)
        samples["up"] = {}
        found[service] = Vocabulary(samples, service)
    return found


@cache
def known_values() -> dict[str, frozenset[str]]:
    """All values of labels whose values the code itself names, beside those that are there from the start."""
    # Not at the top, or each service's process would have them too.
    from execution.ingest.v1 import frames_pb2
    from services.common.interceptors import CODE_NAMES
    from services.ledger.leadership import Duty

    descriptor = frames_pb2.RejectCode.DESCRIPTOR
    return {
        "code": frozenset(name.removeprefix("REJECT_CODE_") for name in descriptor.values_by_name),
        "grpc_code": frozenset(CODE_NAMES.values()),
        "grpc_type": frozenset({"unary", "client_stream", "server_stream", "bidi_stream"}),
        "grpc_service": frozenset(service for service, _ in _methods()),
        "grpc_method": frozenset(method for _, method in _methods()),
        "duty": frozenset(duty.name.lower() for duty in Duty),
        "check": frozenset(_in_source(r'readiness\.add\("([^"]+)"')),
        "job": frozenset(SERVICES),
        "reason": frozenset(_in_source(r'_refuse\(stream_id, "([^"]+)"\)')),
    }


def _methods() -> list[tuple[str, str]]:
    found = []
    for path in sorted((REPOSITORY / "protos").rglob("*_service.proto")):
        package = _only(r"^package (\S+);", path)
        for block in _findall(r"^service (\w+) \{(.*?)^\}", path.read_text()):
            found += [(f"{package}.{block[0]}", method) for method in _findall(r"^  rpc (\w+)", block[1])]
    return found


def _in_source(pattern: str) -> set[str]:
    return {
        value
        for path in (REPOSITORY / "services").rglob("*.py")
        for value in _findall(pattern, path.read_text())
    }


def _only(pattern: str, path: Path) -> str:
    (found,) = _findall(pattern, path.read_text())
    return found


def _findall(pattern: str, text: str) -> list[Any]:
    return re.findall(pattern, text, re.MULTILINE | re.DOTALL)


def _samples(service: str) -> Samples:
    importlib.import_module(f"services.{service}.__main__")
    found: Samples = {}
    # A labelled metric without children collects to nothing: only the collector itself knows its labels.
    for collector in list(REGISTRY._collector_to_names):
        if isinstance(collector, Counter | Gauge | Histogram):
            found |= _of_metric(collector)
    for family in REGISTRY.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                values = labels.setdefault(label, [])
                if value not in values:
                    values.append(value)
    if service in WITH_WORKERS:
        found |= {key: {} for key in asyncio.run(_of_workers())}
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}


@dataclass
class _Worker:
    """A worker that does not run."""

    number: int = 0
    restarts: int = 0
    admin_port: int | None = None
    is_running: bool = False


async def _of_workers() -> set[str]:
    """What the one admin port of several workers tells of them."""
    async with worker_admin.serving(Address("127.0.0.1", 0), [_Worker()]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
    return set(_findall(r'^(\w+)\{worker="0"\}', text))


def _of_metric(metric: Counter | Gauge | Histogram) -> Samples:
    name, labels = metric._name, {label: [] for label in metric._labelnames}
    if isinstance(metric, Counter):
        return {f"{name}_total": labels}
    if isinstance(metric, Gauge):
        return {name: labels}
    buckets = [f"{bound}" for bound in metric._upper_bounds[:-1]] + ["+Inf"]
    return {
        f"{name}_bucket": {**labels, "le": buckets},
        f"{name}_sum": dict(labels),
        f"{name}_count": dict(labels),
    }


if __name__ == "__main__":
    json.dump(_samples(sys.argv[1]), sys.stdout)
