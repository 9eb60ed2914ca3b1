"""Which labels an expression of PromQL has, and what in it names something that nobody exports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import promql_parser as promql

from tests.contract.prometheus.exported import TARGET_LABELS, known_values, vocabularies

Labels = frozenset[str]
SET_OPERATORS = {"and", "or", "unless"}


@dataclass
class Judge:
    """Looks through expressions; `recorded` are the labels of the metrics that rules record."""

    recorded: Mapping[str, Labels] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def labels(self, expression: promql.Expr) -> Labels | None:
        """The labels that the result can have, or None for a number; faults are noted on the way."""
        match expression:
            case promql.NumberLiteral() | promql.StringLiteral():
                return None
            case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
                return self.labels(expression.expr)
            case promql.MatrixSelector():
                return self._of_selector(expression.vector_selector)
            case promql.VectorSelector():
                return self._of_selector(expression)
            case promql.AggregateExpr():
                return self._of_aggregate(expression)
            case promql.Call():
                return self._of_call(expression)
            case promql.BinaryExpr():
                return self._of_binary(expression)
        raise AssertionError(f"not known here: {expression}")

    def _of_selector(self, selector: promql.VectorSelector) -> Labels:
        name = selector.name
        if name in self.recorded:
            found = self.recorded[name]
        else:
            exporting = [words for words in vocabularies().values() if name in words.samples]
            if not exporting:
                self.faults.append(f"nobody exports {name}")
                return TARGET_LABELS
            found = frozenset().union(*(words.labels(name) for words in exporting))
        for matcher in selector.matchers.matchers:
            if matcher.name not in found:
                self.faults.append(f"{name} has no label {matcher.name}")
            else:
                self._look_at_value(name, matcher)
        return found

    def _look_at_value(self, name: str, matcher: promql.Matcher) -> None:
        known = set(known_values().get(matcher.name, ()))
        for words in vocabularies().values():
            known |= set(words.samples.get(name, {}).get(matcher.name, ()))
        is_regex = matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
        for wanted in matcher.value.split("|") if is_regex else [matcher.value]:
            pattern = wanted if is_regex else re.escape(wanted)
            if not any(re.fullmatch(pattern, value) for value in known):
                self.faults.append(f"{name}: {matcher.name} is never {wanted!r} (of {sorted(known)})")

    def _of_aggregate(self, expression: promql.AggregateExpr) -> Labels:
        inner = self.labels(expression.expr) or frozenset()
        if expression.modifier is None:
            return frozenset()
        wanted = frozenset(expression.modifier.labels)
        if wanted - inner:
            self.faults.append(f"no {sorted(wanted - inner)} to aggregate by in {expression.prettify()}")
        return wanted if str(expression.modifier).startswith("by") else inner - wanted

    def _of_call(self, call: promql.Call) -> Labels | None:
        inner = [labels for argument in call.args if (labels := self.labels(argument)) is not None]
        match call.func.name:
            case "time":
                return None
            case "absent":
                (selector,) = call.args
                return frozenset(m.name for m in selector.matchers.matchers if m.op == promql.MatchOp.Equal)
            case "label_replace":
                return inner[0] | {call.args[1].val}
            case "histogram_quantile":
                if "le" not in inner[0]:
                    self.faults.append(f"no buckets in {call.prettify()}")
                return inner[0] - {"le"}
        return inner[0]

    def _of_binary(self, expression: promql.BinaryExpr) -> Labels | None:
        left, right = self.labels(expression.lhs), self.labels(expression.rhs)
        if left is None or right is None:
            return left if right is None else right
        operator, modifier = str(expression.op), expression.modifier
        matching = None if modifier is None else modifier.matching
        if matching is not None:
            missing = frozenset(matching.labels) - (left & right)
            if missing:
                self.faults.append(f"no {sorted(missing)} to match on in {expression.prettify()}")
        elif operator != "or" and left != right:
            self.faults.append(f"{sorted(left)} never match {sorted(right)} in {expression.prettify()}")
        return left | right if operator == "or" else left


def counted(expression: promql.Expr) -> Iterator[promql.VectorSelector]:
    """The selectors whose increase an expression counts."""
    found: list[promql.VectorSelector] = []

    def visit(part: promql.Expr) -> None:
        if isinstance(part, promql.Call) and part.func.name == "increase":
            (matrix,) = part.args
            found.append(matrix.vector_selector)

    promql.walk(expression, visit)
    yield from found
