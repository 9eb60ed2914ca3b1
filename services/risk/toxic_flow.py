"""`python -m services.risk.toxic_flow`: prints from the database why a user is trusted or not; it changes nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from services.common import pg
from services.common.errors import ServiceError
from services.risk.domain.decisions import agree, replay
from services.risk.domain.model import PARAMETERS
from services.risk.queries import QUERIES
from services.risk.records import StoredDecision

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_CONFIGURATION = 0, 1, 2, 3
_HISTORY_MAX = 1_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the explanation. 0: printed. 1: no decision, or the database failed. 2: usage. 3: no or a bad --db-url."""
    options = _parser().parse_args(arguments)
    if not options.db_url:
        return _fail(EXIT_CONFIGURATION, "no database: give --db-url or set DATABASE_URL")
    try:
        decisions = asyncio.run(
            _read(options.db_url, options.user_id, options.history, options.timeout_seconds)
        )
    except ServiceError as error:
        return _fail(EXIT_FAILURE, f"cannot read the database: {error.message}")
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        return _fail(EXIT_CONFIGURATION, f"--db-url: {error}")
    if not decisions:
        return _fail(EXIT_FAILURE, f"user {options.user_id} was never scored")
    if options.json:
        print(json.dumps([_document(one, options.evidence) for one in decisions], indent=2))
    else:
        print("\n\n".join(_page(one, options.evidence) for one in decisions))
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.risk.toxic_flow",
        description="Explains a user's trust: the latest decision, its terms, and the signals behind it.",
    )
    parser.add_argument("--user-id", required=True, type=UUID, metavar="UUID")
    parser.add_argument(
        "--db-url", default=os.environ.get("DATABASE_URL"), metavar="URL", help="default: DATABASE_URL"
    )
    parser.add_argument("--json", action="store_true", help="a JSON array instead of tables")
    parser.add_argument(
        "--history",
        type=_count(_HISTORY_MAX),
        default=1,
        metavar="N",
        help="the latest N decisions (default: 1)",
    )
    parser.add_argument(
        "--evidence",
        type=_count(100),
        default=20,
        metavar="N",
        help="signals to show (default: 20, at most 100)",
    )
    parser.add_argument("--timeout-seconds", type=float, default=10.0, metavar="S")
    return parser


def _count(most: int) -> Any:
    def parse(text: str) -> int:
        number = int(text)
        if not 0 <= number <= most:
            raise argparse.ArgumentTypeError(f"must be 0 to {most}")
        return number

    return parse


async def _read(url: str, user_id: UUID, limit: int, timeout_seconds: float) -> list[StoredDecision]:
    with pg.translating():
        connection = await asyncpg.connect(
            url,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            server_settings={"application_name": "toxic_flow", "default_transaction_read_only": "on"},
        )
        try:
            rows = await connection.fetch(QUERIES.list_decisions, user_id, max(1, limit))
        finally:
            await connection.close(timeout=timeout_seconds)
    return [StoredDecision.of(row) for row in rows]


def _replayed(stored: StoredDecision) -> str:
    """Whether the model of today comes to the same decision."""
    if stored.kind == "override":
        return "an operator's word, not the model's"
    if stored.model_version != PARAMETERS.version:
        return f"made by another model; this one is {PARAMETERS.version}"
    again = replay(stored.decision)
    if agree(stored.decision, again):
        return "agrees"
    return f"differs: score {again.score:.3f}, level {again.level}"


def _document(stored: StoredDecision, evidence_max: int) -> dict[str, Any]:
    made = stored.decision
    return {
        "user_id": str(made.user_id),
        "version": made.version,
        "kind": stored.kind,
        "score": made.score,
        "level": made.level.value,
        "decided_at": stored.decided_at.isoformat(),
        "previous": {"score": made.before.checked_score, "level": made.before.level.value},
        "terms": {
            "rejection": made.terms.rejection,
            "selectivity": made.terms.selectivity,
            "integrity": made.terms.integrity,
            "rejection_lower_bound": made.terms.rejection_lower_bound,
        },
        "sums": {
            "signals": made.sums.signals,
            "rejected": made.sums.rejected,
            "weight": made.sums.weight,
            "exposure": made.sums.exposure,
            "excess": made.sums.excess,
            "violations": made.sums.violations,
        },
        "evidence": [one.as_json() for one in stored.evidence[:evidence_max]],
        "model_version": stored.model_version,
        "replay": _replayed(stored),
        "explanation": stored.explanation,
    }


def _page(stored: StoredDecision, evidence_max: int) -> str:
    made = stored.decision
    facts = [
        ("user", str(made.user_id)),
        ("trust", f"{made.score:.2f} ({made.level.value.replace('_', '-')})"),
        ("before", f"{made.before.checked_score:.2f} ({made.before.level.value.replace('_', '-')})"),
        ("decision", f"{made.version} ({stored.kind}) at {stored.decided_at:%Y-%m-%d %H:%M:%S} UTC"),
        (
            "signals",
            f"{made.sums.signals}, rejected {made.sums.rejected}, decayed weight {made.sums.weight:.1f}",
        ),
        ("rejection (R)", f"{made.terms.rejection:.3f}  lower bound {made.terms.rejection_lower_bound:+.3f}"),
        ("selectivity (S)", f"{made.terms.selectivity:.3f}"),
        ("integrity (I)", f"{made.terms.integrity:.3f}  decayed violations {made.sums.violations:.1f}"),
        ("model", stored.model_version),
        ("replay", _replayed(stored)),
    ]
    lines = [stored.explanation, ""] + [f"{name:<16} {value}" for name, value in facts]
    if stored.evidence and evidence_max:
        lines += ["", *_evidence_table(stored, evidence_max)]
    return "\n".join(lines)


def _evidence_table(stored: StoredDecision, evidence_max: int) -> list[str]:
    lines = [f"{'master':>8} {'position':>16}  {'reason':<9} {'peers':>7} {'weight':>7}  reported (UTC)"]
    for one in stored.evidence[:evidence_max]:
        position = f"{one.epoch}:{one.sequence}"
        lines.append(
            f"{one.master_id:>8} {position:>16}  {one.reason.name.lower():<9} {one.peer_rate:>7.1%} {one.weight:>7.3f}"
            f"  {one.reported_at:%Y-%m-%d %H:%M:%S}"
        )
    if len(stored.evidence) > evidence_max:
        lines.append(f"... and {len(stored.evidence) - evidence_max} more")
    return lines


def _fail(code: int, message: str) -> int:
    print(f"toxic_flow: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
