"""How long the front door's tests wait for a condition."""

from __future__ import annotations

from functools import partial

from tests import waiting

until = partial(waiting.until, seconds_max=30.0)
