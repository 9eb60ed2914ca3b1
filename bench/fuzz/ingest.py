"""`ecp fuzz ingest`: mutated frames against the front door's code and against a real front door; it mends nothing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random, SystemRandom
from typing import Any, Final

from bench.fuzz.live_target import LiveTarget, live_target
from bench.fuzz.session_target import SessionTarget, ViolationError
from bench.machine import resident_bytes
from mesh.errors import MeshError

_SLICE_FRAMES: Final = 20_000
_LIVE_SHARE: Final = 0.1
_WARM_UP_FRAMES: Final = 100_000
_GROWTH_BYTES_MAX: Final = 48 * 1_048_576
_SEED_BITS: Final = 32
_SHOWN_BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class FuzzOptions:
    """When to stop, whichever comes first, and where to begin."""

    frames: int = 10_000_000
    seconds: float = 3_600.0
    live: bool = True
    """Give a tenth of the time to a real front door."""
    seed: int = 0
    """0 is another one each time."""


@dataclass(slots=True)
class FuzzReport:
    """What was sent and what came of it."""

    seed: int
    frames: int = 0
    live_frames: int = 0
    live_connections: int = 0
    sessions: int = 0
    signed_frames_taken: int = 0
    seconds: float = 0.0
    growth_mib: float = 0.0
    """Of this process, which runs the front door's code, after a warm-up."""
    live_growth_mib: float = 0.0
    failure: str = ""
    """What went wrong, with the bytes that led to it."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing went wrong."""
        return not self.failure

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"is_sound": self.is_sound, **asdict(self)}

    def summary(self) -> list[str]:
        """For people."""
        per_second = self.frames / self.seconds if self.seconds else 0
        lines = [
            f"{self.frames:,} mutated frames in {self.seconds:.0f} s ({per_second:,.0f}/s) with seed {self.seed}:"
            f" {self.sessions:,} sessions, {self.signed_frames_taken:,} signed frames rightly taken,"
            f" memory {self.growth_mib:+.1f} MiB",
        ]
        if self.live_connections:
            lines.append(
                f"{self.live_frames:,} of them in {self.live_connections:,} connections to a real front door, which"
                f" grew by {self.live_growth_mib:.1f} MiB and served its master throughout"
            )
        return [*lines, "sound" if self.is_sound else f"NOT SOUND: {self.failure}"]


@dataclass(slots=True)
class _InProcess:
    """The session target and its bounds."""

    target: SessionTarget
    own_pid: int
    frames: int = 0
    baseline_bytes: int = 0
    growth_bytes: int = field(default=0)

    def slice(self, frames: int) -> None:
        """Feeds so many frames.

        Raises:
            ViolationError: a rule was broken, or memory grew.
            Exception: a crash.
        """
        for _ in range(frames):
            self.target.step()
        self.frames += frames
        resident = resident_bytes(self.own_pid)
        if self.frames <= _WARM_UP_FRAMES or not self.baseline_bytes:
            self.baseline_bytes = resident
        self.growth_bytes = resident - self.baseline_bytes
        if self.growth_bytes > _GROWTH_BYTES_MAX:
            raise ViolationError(f"memory grew by {self.growth_bytes:,} bytes")


async def fuzz(options: FuzzOptions, own_pid: int, tell: Callable[[str], None]) -> FuzzReport:
    """Mutates until frames or time are used up, or something goes wrong. `tell` gets a line now and then.

    Raises:
        MeshError: the real front door could not be started.
    """
    report = FuzzReport(options.seed or SystemRandom().getrandbits(_SEED_BITS))
    began = time.monotonic()
    random = Random(report.seed)
    inside = _InProcess(SessionTarget(random, time.time_ns() // 1_000), own_pid)
    try:
        if options.live:
            async with live_target() as live:
                await _both(options, report, inside, live, random, tell)
                await live.check_log()
        else:
            await _both(options, report, inside, None, random, tell)
    except MeshError:
        raise
    except Exception as error:
        # Whatever it was, it is what the fuzzer is there to find.
        shown = inside.target.last_input[:_SHOWN_BYTES_MAX].hex()
        report.failure = f"{''.join(traceback.format_exception(error))}last input {shown}"
    report.seconds = round(time.monotonic() - began, 1)
    return report


async def _both(
    options: FuzzOptions,
    report: FuzzReport,
    inside: _InProcess,
    live: LiveTarget | None,
    random: Random,
    tell: Callable[[str], None],
) -> None:
    """Takes turns between the code in this process and the process that serves."""
    ends_at = time.monotonic() + options.seconds
    while report.frames < options.frames and time.monotonic() < ends_at:
        started = time.monotonic()
        left = options.frames - report.frames
        inside.slice(min(_SLICE_FRAMES, left))
        if live is not None:
            live_seconds = max(0.2, (time.monotonic() - started) * _LIVE_SHARE)
            await live.attack(random, live_seconds, frames_max=live.frames + left)
            report.live_frames, report.live_connections = live.frames, live.connections
            report.live_growth_mib = round(live.growth_bytes / 1_048_576, 1)
        report.frames = inside.frames + report.live_frames
        report.sessions = inside.target.sessions
        report.signed_frames_taken = inside.target.signed_frames_taken
        report.growth_mib = round(inside.growth_bytes / 1_048_576, 1)
        tell(
            f"{report.frames:,} frames, {report.sessions:,} sessions, {report.live_connections:,} connections"
        )
