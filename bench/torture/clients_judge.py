"""Reads what a stock client prints of its stream and holds it against what was sent: pure, whatever client it is.

Programs of ours print a line for each event, as the example subscribers do; curl-like tools print each message as JSON.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

DRAINED: Final = "UNAVAILABLE"
"""The status of a stream that ended with a Drain."""
_EPOCH: Final = 1
_PROBLEMS_MAX: Final = 20
_DOCUMENT_BYTES_MAX: Final = 8 * 1024 * 1024

_SIGNAL: Final = re.compile(r"\d+/(\d+)/(\d+) after (\d+)/(\d+): .* position (\d+)")
_ENDED: Final = re.compile(r"stream ended: (?:([A-Z_]+) )?(.*)")
_CODE: Final = re.compile(r"\"code\": ?\"(\w+)\"|Code: (\w+)")
_IN_STEP: Final = ("SYNCED", "SUBSCRIPTION_STATE_SYNCED")


@dataclass(slots=True)
class StreamJudge:
    """One stream: each signal once, in order, dense from the first on, with its own content."""

    signals: int = 0
    last: int = 0
    drains: int = 0
    status: str = ""
    """The code that the stream ended with; empty while it goes on."""
    note: str = ""
    """What was said with it."""
    problems: list[str] = field(default_factory=list)

    def signal(self, epoch: int, sequence: int, previous: tuple[int, int], position_id: int) -> None:
        """The next signal that the client acted on. The load numbers its positions as its signals."""
        expected = self.last + 1
        if (epoch, sequence) != (_EPOCH, expected):
            self.problem(f"{epoch}/{sequence} came where {_EPOCH}/{expected} was due")
        elif previous != (_EPOCH, expected - 1):
            self.problem(f"{epoch}/{sequence} names {previous[0]}/{previous[1]} as the one before")
        elif position_id != sequence:
            self.problem(f"{epoch}/{sequence} has the content of {position_id}")
        self.signals += 1
        self.last = max(self.last, sequence)

    def state(self, state: str) -> None:
        """A subscription's state; every other than being in step is wrong here."""
        if state not in _IN_STEP:
            self.problem(f"the subscription became {state}")

    def drained(self) -> None:
        """The server announced its end."""
        self.drains += 1

    def ended(self, status: str, note: str) -> None:
        """The stream ended; the first end counts: what a client says when it cannot come back does not."""
        if not self.status:
            self.status, self.note = status.upper(), note

    def problem(self, what: str) -> None:
        """Something that must not be."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(what)

    def verdict(self, sent: int) -> list[str]:
        """What is wrong now that the stream is over and `sent` signals were sent; empty when nothing is."""
        found = list(self.problems)
        if (self.signals, self.last) != (sent, sent):
            found.append(f"{self.signals} signals up to {self.last} came, {sent} were sent")
        if self.drains != 1:
            found.append(f"{self.drains} Drains came")
        if self.status != DRAINED:
            ended = f"{self.status}: {self.note}" if self.status else "no status"
            found.append(f"it ended with {ended}, instead of {DRAINED}")
        return found


class Output(Protocol):
    """What reads the bytes that a client prints."""

    def take(self, data: bytes) -> None:
        """The next bytes of its standard output."""
        ...

    def take_errors(self, text: str) -> None:
        """All that it wrote to standard error; it has ended."""
        ...


class Lines:
    """The output of the example subscribers, and of the readers that print the same."""

    def __init__(self, judge: StreamJudge) -> None:
        self._judge = judge
        self._rest = b""

    def take(self, data: bytes) -> None:
        """The next bytes of its standard output."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take_line(line.decode("utf-8", "replace"))

    def take_errors(self, text: str) -> None:
        """These programs say nothing there unless they fail."""
        if text.strip():
            self._judge.problem(f"it wrote to standard error: {text.strip()[-300:]}")

    def _take_line(self, line: str) -> None:
        if found := _SIGNAL.match(line):
            epoch, sequence, *previous, position_id = map(int, found.groups())
            self._judge.signal(epoch, sequence, (previous[0], previous[1]), position_id)
        elif line.startswith("drain: "):
            self._judge.drained()
        elif ended := _ENDED.match(line):
            self._judge.ended(ended[1] or "UNKNOWN", ended[2])
        elif line.startswith("state of master "):
            self._judge.state(line.partition(": ")[2].partition(" ")[0])
        elif line:
            self._judge.problem(f"it says: {line[:200]}")


class Documents:
    """The output of tools that print each message as JSON over several lines, and the status to standard error."""

    def __init__(self, judge: StreamJudge) -> None:
        self._judge = judge
        self._rest = b""

    def take(self, data: bytes) -> None:
        """The next bytes of its standard output."""
        # A line of nothing but a brace ends a document; all others are indented.
        *documents, self._rest = (self._rest + data).split(b"\n}\n")
        for document in documents:
            self._take_document(document + b"}")
        if len(self._rest) > _DOCUMENT_BYTES_MAX:
            self._judge.problem("it prints something endless that is no message")
            self._rest = b""

    def take_errors(self, text: str) -> None:
        """The status, as grpcurl and buf print it."""
        found = _CODE.search(text)
        if found is None:
            self._judge.problem(f"it ended without a status: {text.strip()[-300:]}")
        else:
            self._judge.ended(found[1] or found[2], " ".join(text.split())[-300:])

    def _take_document(self, text: bytes) -> None:
        try:
            document: dict[str, Any] = json.loads(text)
        except ValueError:
            self._judge.problem(f"it prints {text[:200]!r}, which is no message")
            return
        for event, content in document.items():
            self._take_event(event, content)

    def _take_event(self, event: str, content: dict[str, Any]) -> None:
        match event:
            case "signals":
                for one in content["signals"]:
                    previous = int(one.get("previousEpoch", 0)), int(one.get("previousSequence", 0))
                    position_id = int(one["signal"]["positionId"])
                    self._judge.signal(int(one["epoch"]), int(one["sequence"]), previous, position_id)
            case "progress":
                pass
            case "drain":
                self._judge.drained()
            case "stateChange":
                self._judge.state(content.get("state", ""))
            case _:
                self._judge.problem(f"a {event} came")
