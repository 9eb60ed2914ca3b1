"""What the connections of one server share; it serves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.common.h2grpc.h2_bypass import FrameMaker
from services.common.h2grpc.handlers import Method
from services.common.h2grpc.settings import Http2Settings

if TYPE_CHECKING:
    from services.common.h2grpc.connection import Connection


@dataclass(slots=True)
class Serving:
    """What the connections of one server share."""

    settings: Http2Settings
    methods: Mapping[bytes, Method]
    connections: dict[Connection, None] = field(default_factory=dict)
    maker: FrameMaker = field(default_factory=FrameMaker)
    on_idle: Callable[[], None] = lambda: None
    """Called when a connection has ended."""
    turn: memoryview = field(init=False)
    """Where what a connection reads is put for a moment."""

    def __post_init__(self) -> None:
        self.turn = memoryview(bytearray(self.settings.http2_read_bytes_max))
