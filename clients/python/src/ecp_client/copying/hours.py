"""The hours in which a subscriber opens positions, by the clock of some place. Pure but for the zones' rules."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ecp_client.errors import SettingsError

DAY_MINUTES = 24 * 60
UTC = "UTC"
_MINUTE_US = 60_000_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday.


@dataclass(frozen=True, slots=True)
class Hours:
    """From `from_minute` up to but without `to_minute` of the day, on these weekdays (0 is Monday).

    Both are by the clock of `time_zone`, an IANA name such as "America/New_York", summer time included. On Windows all
    but UTC need the package tzdata. A window that ends before it begins goes on after midnight; it belongs to the day
    on which it began.

    Raises:
        SettingsError: a value is out of range, the window is empty, or the time zone is not known.
    """

    from_minute: int
    to_minute: int
    weekdays: frozenset[int] = frozenset(range(7))
    time_zone: str = UTC

    def __post_init__(self) -> None:
        if not (0 <= self.from_minute < DAY_MINUTES and 0 < self.to_minute <= DAY_MINUTES):
            raise SettingsError("hours must be within 0 to 1,440 minutes")
        if self.from_minute == self.to_minute:
            raise SettingsError("hours that begin when they end are none")
        if not self.weekdays or not self.weekdays <= set(range(7)):
            raise SettingsError("weekdays must be of 0 (Monday) to 6")
        if self.time_zone != UTC:
            try:
                ZoneInfo(self.time_zone)
            except (ZoneInfoNotFoundError, ValueError, OSError) as error:
                raise SettingsError(
                    f"time_zone {self.time_zone!r} is not known here; on Windows install the package tzdata"
                ) from error

    def hold(self, at_us: int) -> bool:
        """Whether the moment, in microseconds since 1970, lies within."""
        weekday, minute = self._there(at_us)
        if self.from_minute < self.to_minute:
            return weekday in self.weekdays and self.from_minute <= minute < self.to_minute
        if minute >= self.from_minute:
            return weekday in self.weekdays
        return minute < self.to_minute and (weekday - 1) % 7 in self.weekdays

    def _there(self, at_us: int) -> tuple[int, int]:
        """Weekday and minute of the day, there."""
        if self.time_zone != UTC:
            there = datetime.datetime.fromtimestamp(at_us // 1_000_000, ZoneInfo(self.time_zone))
            return there.weekday(), there.hour * 60 + there.minute
        days, minute = divmod(at_us // _MINUTE_US, DAY_MINUTES)
        return (days + _EPOCH_WEEKDAY) % 7, minute
