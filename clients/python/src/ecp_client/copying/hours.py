"""The hours in which a subscriber opens positions, in UTC. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ecp_client.errors import SettingsError

DAY_MINUTES = 24 * 60
_MINUTE_US = 60_000_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday.


@dataclass(frozen=True, slots=True)
class Hours:
    """From `from_minute` up to but without `to_minute` of the day, UTC, on these weekdays (0 is Monday).

    A window that ends before it begins goes on after midnight; it belongs to the day on which it began.

    Raises:
        SettingsError: a value is out of range, or the window is empty.
    """

    from_minute: int
    to_minute: int
    weekdays: frozenset[int] = frozenset(range(7))

    def __post_init__(self) -> None:
        if not (0 <= self.from_minute < DAY_MINUTES and 0 < self.to_minute <= DAY_MINUTES):
            raise SettingsError("hours must be within 0 to 1,440 minutes")
        if self.from_minute == self.to_minute:
            raise SettingsError("hours that begin when they end are none")
        if not self.weekdays or not self.weekdays <= set(range(7)):
            raise SettingsError("weekdays must be of 0 (Monday) to 6")

    def hold(self, at_us: int) -> bool:
        """Whether the moment, in microseconds since 1970, lies within."""
        days, minute = divmod(at_us // _MINUTE_US, DAY_MINUTES)
        weekday = (days + _EPOCH_WEEKDAY) % 7
        if self.from_minute < self.to_minute:
            return weekday in self.weekdays and self.from_minute <= minute < self.to_minute
        if minute >= self.from_minute:
            return weekday in self.weekdays
        return minute < self.to_minute and (weekday - 1) % 7 in self.weekdays
