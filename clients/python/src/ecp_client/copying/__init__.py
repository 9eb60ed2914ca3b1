"""Copying one master into one account: settings, decisions with their reasons, and the full sync's plan. Pure."""

from ecp_client.copying.comparing import differences
from ecp_client.copying.copier import Copier, Protection, QuoteSource
from ecp_client.copying.decisions import TAKEN, Action, Decision, Reason
from ecp_client.copying.explaining import explain
from ecp_client.copying.hours import Hours
from ecp_client.copying.reconciling import Plan, PlannedAction, Step, reconcile
from ecp_client.copying.scaling import EquitySource, PointValueSource, Scaling
from ecp_client.copying.settings import CopySettings
from ecp_client.copying.symbol_rules import SymbolRules
from ecp_client.copying.unconfirmed import Unconfirmed
from ecp_client.scale import Scale

__all__ = [
    "TAKEN",
    "Action",
    "Copier",
    "CopySettings",
    "Decision",
    "EquitySource",
    "Hours",
    "Plan",
    "PlannedAction",
    "PointValueSource",
    "Protection",
    "QuoteSource",
    "Reason",
    "Scale",
    "Scaling",
    "Step",
    "SymbolRules",
    "Unconfirmed",
    "differences",
    "explain",
    "reconcile",
]
