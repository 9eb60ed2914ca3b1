"""The demo's result: as JSON for scripts and as a summary for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from mesh.demo.reconcile import Reconciliation

SHOWN_DIFFERENCES = 20


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run found. Latencies are from the master's send to the subscriber's receipt."""

    seconds: float
    rate_wanted: float
    found: Reconciliation
    ledger_balanced: bool
    latency_ms: dict[str, Any]
    masters: int
    subscribers: int
    paused: list[str]
    cheating: list[str]
    unfinished: list[str]
    restarts: dict[str, int]
    signals_refused: int

    @property
    def wrong_pauses(self) -> list[str]:
        """Who was paused and is honest, or cheats and was not paused."""
        return sorted(set(self.paused) ^ set(self.cheating))

    @property
    def is_sound(self) -> bool:
        """Whether nothing differs, nobody is behind, and exactly those who cheat are paused."""
        return not (self.found.difference_count or self.unfinished or self.wrong_pauses)

    def problems(self) -> list[str]:
        """One line for each thing that is wrong."""
        return [
            *self.found.differences[:SHOWN_DIFFERENCES],
            *([f"… {self.found.difference_count} differences in all"] if self._hidden else []),
            *(f"{name} did not reach the end of its streams" for name in self.unfinished),
            *(f"{name} was paused and is honest" for name in self.paused if name not in self.cheating),
            *(f"{name} cheats and was not paused" for name in self.cheating if name not in self.paused),
        ]

    @property
    def _hidden(self) -> bool:
        return self.found.difference_count > SHOWN_DIFFERENCES

    def as_json(self) -> dict[str, Any]:
        """For scripts; names are kept."""
        found = self.found
        return {
            "ok": self.is_sound,
            "seconds": self.seconds,
            "masters": self.masters,
            "subscribers": self.subscribers,
            "signals": {
                "rate_wanted": self.rate_wanted,
                "rate": round(found.acknowledged / self.seconds, 1),
                "acknowledged": found.acknowledged,
                "refused": self.signals_refused,
                "logged": found.logged,
                "archived": found.archived,
            },
            "deliveries": {
                "expected": found.expected,
                "received": found.received,
                "duplicates": found.duplicates,
                "missing": found.missing,
                "unordered": found.unordered,
                "withheld": found.withheld,
                "resynced": found.resynced,
            },
            "gaps": {"unexplained": found.unexplained_gaps},
            "positions": {"compared": found.compared_positions, "mismatched": found.mismatched_positions},
            "ledger": {"balanced": self.ledger_balanced},
            "latency_ms": self.latency_ms,
            "users": {"paused": self.paused, "cheating": self.cheating},
            "services": {"restarts": self.restarts},
            "differences": self.problems(),
        }

    def print(self) -> None:
        """A summary for people, on stdout."""
        console, found = Console(), self.found
        table = Table(title="What the books say", title_justify="left", box=None, show_header=False)
        table.add_column()
        table.add_column(justify="right", style="bold")
        rows: list[tuple[str, object]] = [
            ("signals acknowledged to the masters", found.acknowledged),
            ("… in the log", found.logged),
            ("… in the archive", found.archived),
            ("deliveries expected", found.expected),
            ("… received, each once and in order", found.received),
            ("… missing, doubled, out of order", f"{found.missing}, {found.duplicates}, {found.unordered}"),
            ("… withheld from paused subscribers", found.withheld),
            ("… covered by a full sync after a pause", found.resynced),
            ("gaps without an explanation", found.unexplained_gaps),
            (
                "positions compared, and mismatched",
                f"{found.compared_positions}, {found.mismatched_positions}",
            ),
            ("journals balance", "yes" if self.ledger_balanced else "NO"),
            ("latency p50, p99", f"{self.latency_ms.get('p50')} ms, {self.latency_ms.get('p99')} ms"),
            ("paused for cheating", ", ".join(self.paused) or "nobody"),
            ("services restarted", sum(self.restarts.values())),
        ]
        for label, value in rows:
            table.add_row(label, str(value))
        console.print(table)
        for problem in self.problems():
            console.print(problem, style="red", markup=False, highlight=False)
        verdict = (
            "[green]Everything adds up.[/green]" if self.is_sound else "[red]The books do not add up.[/red]"
        )
        console.print(verdict)
