"""What the front door has counted so far, by reason."""

from __future__ import annotations

from prometheus_client import REGISTRY


def cut(reason: str) -> float:
    return REGISTRY.get_sample_value("ingest_connections_cut_total", {"reason": reason}) or 0.0


def rejected(code: str) -> float:
    return REGISTRY.get_sample_value("signal_rejections_total", {"code": code}) or 0.0
