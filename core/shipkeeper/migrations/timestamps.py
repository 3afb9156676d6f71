"""Text that says when: the accepted forms, once as patterns that Python and PostgreSQL share, once as a Python reader.

The patterns admit only dates that exist (but for the year, which is checked beside them), so that the
database's own cast can never fail on what a pattern let through. The Python reader is what SQLite calls for each row;
PostgreSQL gets the same rules as one set-based expression (see postgresql.py).

The rule for wall-clock times that do not exist once: a time that exists twice is the later instant (standard time),
one that a clock change skips is read with the offset before the change. This is what PostgreSQL does by itself.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import pytz

from shipkeeper.resources.migrationmapping import TimestampForm, TimestampFromText

_YEAR: Final = "[0-9]{4}"
_TIME: Final = "([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\\.[0-9]{1,6})?)?"
_OFFSET: Final = "(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)"


def _month_and_day(separator: str) -> str:
    return (
        f"((0[13578]|1[02]){separator}(0[1-9]|[12][0-9]|3[01])"
        f"|(0[469]|11){separator}(0[1-9]|[12][0-9]|30)"
        f"|02{separator}(0[1-9]|[12][0-9]))"
    )


def _day_and_month(separator: str) -> str:
    return (
        f"((0[1-9]|[12][0-9]|3[01]){separator}(0[13578]|1[02])"
        f"|(0[1-9]|[12][0-9]|30){separator}(0[469]|11)"
        f"|(0[1-9]|[12][0-9]){separator}02)"
    )


_ISO_DATE: Final = f"{_YEAR}-{_month_and_day('-')}"

# One pattern per form; the subset of regular expressions that Python and PostgreSQL read alike.
PATTERNS: Final[dict[TimestampForm, str]] = {
    "Iso8601WithOffset": f"^{_ISO_DATE}[T ]{_TIME}{_OFFSET}$",
    "Iso8601": f"^{_ISO_DATE}[T ]{_TIME}$",
    "Iso8601Date": f"^{_ISO_DATE}$",
    "DayMonthYear": f"^{_day_and_month('[/.-]')}[/.-]{_YEAR}( {_TIME})?$",
    "MonthDayYear": f"^{_month_and_day('[/.-]')}[/.-]{_YEAR}( {_TIME})?$",
    # Fewer digits would be the early seventies, and far more often a year or a date without hyphens.
    "EpochSeconds": "^(-?[0-9]{9,10}|[0-9]{11})$",
    "EpochMilliseconds": "^(-?[0-9]{12}|[0-9]{13})$",
}
# Years whose instants every zone's offset keeps within what both sides can hold.
FIRST_YEAR: Final = 2
LAST_YEAR: Final = 9998
BLANKS: Final = " \t\r\n"

_COMPILED: Final = {form: re.compile(pattern.replace("$", r"\Z")) for form, pattern in PATTERNS.items()}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class UnreadableTimestampError(ValueError):
    """The text has none of the accepted forms, or names an instant that the rules reject."""


def read_timestamp(text: str, rules: TimestampFromText) -> datetime:
    """Return the instant that the text names, in UTC.

    Raises UnreadableTimestampError where it has none of the accepted forms.
    """
    stripped = text.strip(BLANKS)
    for form in rules.forms:
        if _COMPILED[form].match(stripped):
            return _read_form(stripped, form, rules)
    raise UnreadableTimestampError("not in an accepted form")


def _read_form(text: str, form: TimestampForm, rules: TimestampFromText) -> datetime:
    try:
        match form:
            case "EpochSeconds":
                return _EPOCH + timedelta(seconds=int(text))
            case "EpochMilliseconds":
                return _EPOCH + timedelta(milliseconds=int(text))
            case "Iso8601WithOffset":
                return _in_range(datetime.fromisoformat(_padded(text))).astimezone(UTC)
            case "DayMonthYear":
                text = f"{text[6:10]}-{text[3:5]}-{text[0:2]}{text[10:]}"
            case "MonthDayYear":
                text = f"{text[6:10]}-{text[0:2]}-{text[3:5]}{text[10:]}"
        return _to_utc(_in_range(datetime.fromisoformat(_padded(text))), rules)
    except (ValueError, OverflowError) as error:
        raise UnreadableTimestampError(str(error)) from error


def _in_range(instant: datetime) -> datetime:
    if not FIRST_YEAR <= instant.year <= LAST_YEAR:
        raise UnreadableTimestampError(f"the year {instant.year} is out of range")
    return instant


def _padded(text: str) -> str:
    """Return the ISO text with a fraction of six digits; Python reads three or six only."""
    found = re.search(r"\.([0-9]{1,6})", text)
    if found is None:
        return text
    return text[: found.start(1)] + found[1].ljust(6, "0") + text[found.end(1) :]


def _to_utc(naive: datetime, rules: TimestampFromText) -> datetime:
    zone = _zone(rules.naive_zone)
    first, second = (naive.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first == second:
        return first
    # With fold 0 a skipped time has the offset before the change, which is the later instant of the two.
    skipped = first > second
    if skipped and rules.nonexistent == "Reject":
        raise UnreadableTimestampError(f"{naive} does not exist in {rules.naive_zone}")
    if not skipped and rules.ambiguous == "Reject":
        raise UnreadableTimestampError(f"{naive} exists twice in {rules.naive_zone}")
    return first if skipped or rules.ambiguous == "Earlier" else second


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    # From pytz's own copy of the zone database: no system package decides what an instant is.
    with pytz.open_resource(name) as file:  # type: ignore[attr-defined] # The stubs leave it out.
        return ZoneInfo.from_file(file, key=name)
