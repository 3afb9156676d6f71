"""Time zones, spans and active hours: the parts of a spec that speak of wall clocks and calendars."""

from datetime import date, timedelta
from typing import Annotated, Final, Literal, Self

import pytz
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from .base import ResourceModel, cel, list_map, parse_duration, with_cel

_ZONE_EXAMPLES: Final = "Europe/Paris, America/New_York or UTC"


def _known_time_zone(name: str) -> str:
    if name not in pytz.all_timezones_set:
        raise ValueError(f"{name!r} is not an IANA time zone; write for example {_ZONE_EXAMPLES}")
    return name


# The API server looks the zone up in its own copy of the zone database, and names it when it is unknown. `Local` would
# be the zone of whatever machine asks.
_KNOWN_TIME_ZONE: Final = cel(
    "self != 'Local' && timestamp('2000-01-01T00:00:00Z').getFullYear(self) > 0",
    f"write the name of an IANA time zone as in the zone database, for example {_ZONE_EXAMPLES}",
)

TimeZone = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z][A-Za-z0-9_+/-]*$",
        json_schema_extra=with_cel(_KNOWN_TIME_ZONE),
    ),
    AfterValidator(_known_time_zone),
]
"""An IANA time zone, spelled as in the zone database."""

# At most eight digits a part, as in a Duration: what fits into 32 characters then also fits into a timedelta.
_SPAN_PATTERN = r"^([0-9]{1,8}(\.[0-9]{1,9})?(ms|s|m|h))+$"

Span = Annotated[str, Field(pattern=_SPAN_PATTERN, max_length=32)]
"""A span of time in h, m, s and ms, which CEL can compare (it knows no days: seven days are 168h)."""


def milliseconds(span: str) -> int:
    """Return a span's length in whole milliseconds."""
    return round(parse_duration(span) / timedelta(milliseconds=1))


Weekday = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WEEKDAYS: Final[tuple[Weekday, ...]] = (
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
)

TimeOfDay = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)]
"""A wall-clock time, HH:MM, 00:00 to 23:59."""

RuleMode = Literal["Enforce", "Shadow", "Off"]

_SAME_TIMES = "start and end of an active range must differ; for the whole day write start 00:00 and end 24:00"


class ActiveRange(ResourceModel):
    """A range of wall-clock times. An end before the start is past midnight and belongs to the day of the start."""

    model_config = ConfigDict(json_schema_extra=with_cel(cel("self.start != self.end", _SAME_TIMES)))

    start: TimeOfDay
    """First minute of the range, HH:MM, included."""
    end: str = Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", max_length=5)
    """End of the range, HH:MM up to 24:00, not included. Before `start`: the range runs over midnight."""

    @model_validator(mode="after")
    def _start_and_end_differ(self) -> Self:
        if self.start == self.end:
            raise ValueError(_SAME_TIMES)
        return self


_REPEATED_DAY = "days of an active rule must not repeat a day"


class ActiveRule(ResourceModel):
    """Ranges of active time on some days of the week."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("self.days.all(d, self.days.exists_one(e, e == d))", _REPEATED_DAY))
    )

    days: tuple[Weekday, ...] = Field(default=WEEKDAYS, min_length=1, max_length=7)
    """The days of the week on which the ranges start. Default: every day."""
    times: tuple[ActiveRange, ...] = Field(min_length=1, max_length=8)
    """The active ranges of such a day. Ranges that touch or overlap are joined."""

    @model_validator(mode="after")
    def _days_do_not_repeat(self) -> Self:
        if len(set(self.days)) < len(self.days):
            raise ValueError(_REPEATED_DAY)
        return self


def _real_date(text: str) -> str:
    date.fromisoformat(text)
    return text


Date = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", max_length=10, json_schema_extra={"format": "date"}),
    AfterValidator(_real_date),
]
"""A calendar date, YYYY-MM-DD."""


class ActiveException(ResourceModel):
    """A date on which other hours hold than the weekly rules say."""

    date: Date
    """The date, YYYY-MM-DD, in the policy's time zone."""
    times: tuple[ActiveRange, ...] = Field(default=(), max_length=8)
    """The active ranges that start on that date. Empty: closed all day."""


class ActiveHours(ResourceModel):
    """When calls are admitted. Outside, a call is denied until the next opening."""

    mode: RuleMode = "Enforce"
    """Enforce: deny outside. Shadow: admit and report. Off: no effect (write it in quotes)."""
    rules: tuple[ActiveRule, ...] = Field(min_length=1, max_length=16)
    """The weekly active time: the union of all rules."""
    exceptions: tuple[ActiveException, ...] = Field(default=(), max_length=128, json_schema_extra=list_map("date"))
    """Dates with other hours, such as holidays."""

    @model_validator(mode="after")
    def _dates_do_not_repeat(self) -> Self:
        dates = [exception.date for exception in self.exceptions]
        repeated = next((each for each in dates if dates.count(each) > 1), None)
        if repeated is not None:
            raise ValueError(f"exceptions names the date {repeated} twice; give a date once, with all its ranges")
        return self
