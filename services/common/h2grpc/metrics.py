"""What the HTTP/2 edge tells Prometheus; it decides nothing."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

CONNECTIONS = Gauge("http2_connections", "Open connections.")
ACCEPTED = Counter("http2_connections_accepted_total", "Connections accepted.")
ENDED = Counter("http2_connections_ended_total", "Connections that this side ended, by reason.", ("reason",))
ABUSE = Counter("http2_abuse_total", "Connections ended because the peer broke a limit.", ("limit",))
REFUSED_STREAMS = Counter(
    "http2_streams_refused_total", "Streams that were not served, by reason.", ("reason",)
)
RESET_STREAMS = Counter("http2_streams_reset_total", "Streams that this side reset, by reason.", ("reason",))
