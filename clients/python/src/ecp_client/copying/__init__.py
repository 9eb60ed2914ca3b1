"""Copying one master into one account: settings, decisions with their reasons, and the full sync's plan. Pure."""

from ecp_client.copying.copier import Copier, Protection, QuoteSource
from ecp_client.copying.decisions import Action, Decision, Reason
from ecp_client.copying.explaining import explain
from ecp_client.copying.reconciling import Plan, PlannedAction, Step, differences, reconcile
from ecp_client.copying.settings import CopySettings

__all__ = [
    "Action",
    "Copier",
    "CopySettings",
    "Decision",
    "Plan",
    "PlannedAction",
    "Protection",
    "QuoteSource",
    "Reason",
    "Step",
    "differences",
    "explain",
    "reconcile",
]
