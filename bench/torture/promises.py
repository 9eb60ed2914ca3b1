"""What one master was promised, and what of it the log holds: pure, and the judge of a torture run.

Each signal carries its sequence as its magic number, so that content and place can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from execution.common.v1 import position_pb2
from execution.ingest.v1 import log_pb2


@dataclass(frozen=True, slots=True)
class Span:
    """Sequences first to last of one epoch."""

    epoch: int
    first: int
    last: int

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1)


@dataclass(slots=True)
class Promises:
    """What a master heard acknowledged, in the order of hearing."""

    spans: list[Span] = field(default_factory=list)
    sequence: int = 0
    """Everything up to here was acknowledged once."""

    def acknowledged(self, epoch: int, sequence: int) -> None:
        """The master heard that everything up to `sequence` is in the log, in `epoch`."""
        if sequence <= self.sequence:
            return
        last = self.spans[-1] if self.spans else None
        if last is not None and last.epoch == epoch:
            self.spans[-1] = Span(epoch, last.first, sequence)
        else:
            self.spans.append(Span(epoch, self.sequence + 1, sequence))
        self.sequence = sequence

    def so_far(self) -> Promises:
        """As they are now: to be held against a log that is read while the master goes on."""
        return Promises(list(self.spans), self.sequence)


@dataclass(slots=True)
class MasterLog:
    """One master's runs, taken in log order; what breaks a rule is kept as a sentence."""

    master_id: int
    spans: list[Span] = field(default_factory=list)
    lost: list[Span] = field(default_factory=list)
    """What epoch starts name as lost; `epoch` is the one in which it was."""
    log_losses_at_us: list[int] = field(default_factory=list)
    gaps: int = 0
    problems: list[str] = field(default_factory=list)
    epoch: int = 1
    last: int = 0

    def take(self, run: log_pb2.LogRun) -> None:
        """The next run of this master."""
        match run.WhichOneof("record"):
            case "batch":
                self._continues(run)
                self._check_batch(run)
                self._extend(run.first_sequence, run.last_sequence)
            case "gap":
                self._continues(run)
                self.gaps += 1
                self._extend(run.first_sequence, run.last_sequence)
            case "epoch_start":
                self._begin(run)
            case "snapshot":
                if (run.epoch, run.last_sequence) != (self.epoch, self.last):
                    self._problem(f"a snapshot marker stands at {run.epoch}/{run.last_sequence}")
            case _:
                self._problem("a run without a record")

    def _continues(self, run: log_pb2.LogRun) -> None:
        if (run.epoch, run.first_sequence) != (self.epoch, self.last + 1):
            self._problem(f"{run.epoch}/{run.first_sequence} follows")

    def _check_batch(self, run: log_pb2.LogRun) -> None:
        count = run.last_sequence - run.first_sequence + 1
        if count != len(run.batch.signals) or run.batch.first_sequence != run.first_sequence:
            self._problem(f"the run {run.first_sequence} to {run.last_sequence} has other signals in it")
        for sequence, signal in enumerate(run.batch.signals, run.first_sequence):
            if signal.magic != sequence:
                self._problem(f"sequence {sequence} is the signal that was put in as {signal.magic}")

    def _begin(self, run: log_pb2.LogRun) -> None:
        previous = run.epoch_start.previous
        if run.epoch <= self.epoch or run.last_sequence < self.last:
            self._problem(f"an epoch begins at {run.epoch}/{run.last_sequence}")
        if (previous.epoch, previous.sequence) not in ((self.epoch, self.last), (0, 0)):
            self._problem(f"an epoch start names {previous.epoch}/{previous.sequence} as the position before")
        if run.epoch_start.reason == position_pb2.GAP_REASON_LOG_LOST:
            self.log_losses_at_us.append(run.received_at_us)
        else:
            self._problem(f"an epoch begins for reason {run.epoch_start.reason}")
        self.lost.append(Span(run.epoch - 1, previous.sequence + 1, run.last_sequence))
        self.epoch, self.last = run.epoch, run.last_sequence

    def _extend(self, first: int, last: int) -> None:
        if self.spans and self.spans[-1].epoch == self.epoch and self.spans[-1].last + 1 == first:
            first = self.spans.pop().first
        self.spans.append(Span(self.epoch, first, last))
        self.last = max(self.last, last)

    def _problem(self, what: str) -> None:
        self.problems.append(f"master {self.master_id}: {what} behind {self.epoch}/{self.last}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a master's promises."""

    acknowledged: int
    lost_visibly: int
    """Acknowledged, then lost with a new epoch that says so."""
    problems: list[str]


def judge(promises: Promises, log: MasterLog) -> Verdict:
    """Whether each acknowledged sequence is in the log, or in what an epoch start names as lost."""
    problems, lost = list(log.problems), 0
    for promised in promises.spans:
        kept = sum(_overlap(promised, span) for span in log.spans if span.epoch == promised.epoch)
        named = sum(_overlap(promised, span) for span in log.lost if span.epoch >= promised.epoch)
        if kept + named < len(promised):
            missing = len(promised) - kept - named
            problems.append(
                f"master {log.master_id}: of {promised.epoch}/{promised.first} to {promised.last}, acknowledged,"
                f" {missing} are neither in the log nor named as lost"
            )
        lost += min(named, len(promised) - kept)
    return Verdict(sum(map(len, promises.spans)), lost, problems)


def unexplained_losses(log: MasterLog, cuts_at_us: list[int]) -> list[str]:
    """A kill alone loses nothing: each loss needs a cut of the file between it and the loss before."""
    problems, before_us = [], 0
    for at_us in log.log_losses_at_us:
        if not any(before_us < cut_at_us < at_us for cut_at_us in cuts_at_us):
            problems.append(
                f"master {log.master_id}: history was lost though no file was cut since the last loss"
            )
        before_us = at_us
    return problems


def _overlap(one: Span, other: Span) -> int:
    return max(0, min(one.last, other.last) - max(one.first, other.first) + 1)
