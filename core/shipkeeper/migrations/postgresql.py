"""The PostgreSQL dialect: everything as set-based SQL, so that the server converts, copies and compares by itself."""

from collections.abc import Mapping, Sequence
from typing import Final

from shipkeeper.resources.migrationmapping import JsonType, TimestampForm, TimestampFromText

from .catalog import Column
from .dialect import SqlValue, literal
from .errors import MigrationError
from .sqlite_functions import FALSE_WORDS, TRUE_WORDS
from .timestamps import BLANKS, FIRST_YEAR, LAST_YEAR, PATTERNS

_BLANKS: Final = "E'" + BLANKS.encode("unicode_escape").decode() + "'"
_INTEGER: Final = "^[+-]?[0-9]{1,18}$"
_NUMBER: Final = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


class PostgresqlDialect:
    """How PostgreSQL says it."""

    name = "postgresql"

    def parameter(self, number: int) -> SqlValue:
        """Return the placeholder, as text."""
        return f"CAST(${number} AS text)"

    def key_parameter(self, number: int, column: Column) -> SqlValue:
        """Return the placeholder cast to the key's type."""
        return f"CAST(CAST(${number} AS text) AS {column.type})"

    def as_text(self, expression: SqlValue) -> SqlValue:
        """Return the expression cast to text."""
        return f"CAST({expression} AS text)"

    def joined_key(self, parts: Sequence[SqlValue]) -> SqlValue:
        """Return the key's text."""
        return f"({' || chr(31) || '.join(parts)})"

    def is_blank(self, expression: SqlValue, column: Column) -> SqlValue:
        """Return the condition that the value is null or blank; only text can be blank."""
        if column.family not in ("text", "other"):
            return f"({expression} IS NULL)"
        return f"(coalesce(btrim(CAST({expression} AS text), {_BLANKS}), '') = '')"

    def stored(self, expression: SqlValue, *, source: Column | None, target: Column) -> SqlValue:
        """Return the expression cast to the target's type.

        A cast to varchar(n) would cut silently, so text stays text and the assignment fails on what is too long.
        """
        if target.family == "text":
            return expression if source is not None and source.family == "text" else f"CAST({expression} AS text)"
        if source is not None and source.type == target.type:
            return expression
        if source is None or source.family == target.family:
            return f"CAST({expression} AS {target.type})"
        return f"CAST(CAST({expression} AS text) AS {target.type})"

    def constant(self, text: str, target: Column) -> SqlValue:
        """Return the constant cast to the target's type."""
        return f"CAST({literal(text)} AS {'text' if target.family == 'text' else target.type})"

    def timestamp(self, expression: SqlValue, *, source: Column, rules: TimestampFromText, target: Column) -> SqlValue:
        """Return the instant that the text names."""
        zone = literal(rules.naive_zone)
        if source.family == "timestamptz":
            instant = expression
        elif source.family in ("timestamp", "date"):
            instant = _from_wall_clock(f"CAST({expression} AS timestamp)", zone, rules)
        else:
            text = expression if source.family == "text" else f"CAST({expression} AS text)"
            trimmed = f"btrim({text}, {_BLANKS})"
            # Few rows have spaces around the text; only they pay for taking them off before each look.
            instant = (
                f"coalesce(CASE {_timestamp_branches(rules.forms, text, zone, rules)} END, "
                f"CASE WHEN {trimmed} <> {text} THEN "
                f"CASE {_timestamp_branches(rules.forms, trimmed, zone, rules)} END END)"
            )
        return _instant_as(f"({instant})", target)

    def run_start(self, instant: str, target: Column) -> SqlValue:
        """Return the instant as the target's type."""
        return _instant_as(f"CAST({literal(instant + '+00')} AS timestamptz)", target)

    def convertible(self, expression: SqlValue, *, type_: JsonType, source: Column | None) -> SqlValue:
        """Return the value converted, null where it cannot be."""
        family = source.family if source is not None else "other"
        trimmed = f"btrim(CAST({expression} AS text), {_BLANKS})"
        match type_:
            case "Boolean" if family != "boolean":
                words = f"lower({trimmed})"
                true, false = _words(TRUE_WORDS), _words(FALSE_WORDS)
                return f"CASE WHEN {words} IN {true} THEN true WHEN {words} IN {false} THEN false END"
            case "Integer" if family != "integer":
                return f"CASE WHEN {trimmed} ~ {literal(_INTEGER)} THEN CAST({trimmed} AS bigint) END"
            case "Number" if family not in ("integer", "number"):
                return f"CASE WHEN {trimmed} ~ {literal(_NUMBER)} THEN CAST({trimmed} AS numeric) END"
            case "Text":
                return f"CAST({expression} AS text)"
            case "Json":
                return f"CAST({expression} AS jsonb)"
        return expression

    def json_member(self, converted: SqlValue, *, type_: JsonType) -> SqlValue:
        """Return the value itself: PostgreSQL keeps its JSON type."""
        return converted

    def json_object(self, members: Sequence[tuple[str, SqlValue]], target: Column) -> SqlValue:
        """Return the object in the target's own type."""
        function = "json_build_object" if target.family == "json" else "jsonb_build_object"
        built = f"{function}({', '.join(f'{literal(name)}, {value}' for name, value in members)})"
        return built if target.family in ("json", "jsonb") else f"CAST(CAST({built} AS text) AS {target.type})"

    def json_field(self, expression: SqlValue, field: str, column: Column) -> SqlValue:
        """Return the text of the field."""
        if column.family in ("json", "jsonb"):
            return f"({expression} ->> {literal(field)})"
        return f"(CAST({expression} AS jsonb) ->> {literal(field)})"

    def row_as_json(self, alias: str, columns: Sequence[Column]) -> SqlValue:
        """Return the row as JSON text."""
        return f"CAST(row_to_json({alias}.*) AS text)"

    def digest(self, expressions: Sequence[SqlValue], targets: Sequence[Column]) -> SqlValue:
        """Return a 64-bit hash of the row, in which null and '' differ. A type without a hash counts by its text."""
        values = (
            f"CAST({value} AS text)" if target.family in ("json", "other") else value
            for value, target in zip(expressions, targets, strict=True)
        )
        return f"hash_record_extended(ROW({', '.join(values)}), 0)"

    def digest_sums(self, digest: SqlValue) -> Sequence[SqlValue]:
        """Return the exact sum of the hashes, as text."""
        return (f"CAST(sum({digest}) AS text)",)

    def key_range(self, key: Column, expression: SqlValue, *, size: int, bounds: Sequence[str]) -> SqlValue:
        """Return the number of the key range."""
        if key.family == "integer":
            # Nearly every key passes the first test, which costs a fraction of the second.
            plain = f"ltrim({expression}, '0123456789') = '' AND length({expression}) BETWEEN 1 AND 18"
            number = f"CAST({expression} AS bigint) / {size}"
            return f"CASE WHEN {plain} THEN {number} WHEN {expression} ~ {literal(_INTEGER)} THEN {number} END"
        array = f"CAST(ARRAY[{', '.join(literal(bound) for bound in bounds)}] AS {key.type}[])"
        return f"width_bucket(CAST({expression} AS {key.type}), {array})"

    def fence(self) -> SqlValue:
        """Return OFFSET 0, which the planner does not pull up."""
        return "OFFSET 0"


def _words(words: Sequence[str]) -> SqlValue:
    return f"({', '.join(literal(word) for word in words)})"


# The checks below admit exactly what timestamps.PATTERNS admits. They are spelled without one long regular expression
# because PostgreSQL builds a matcher for every row: a few lookups of two characters cost a third of that.
_TAIL: Final = "^(:[0-5][0-9](\\.[0-9]{1,6})?)?"
_ISO_TAILS: Final[Mapping[TimestampForm, str]] = {
    "Iso8601WithOffset": _TAIL + "(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)$",
    "Iso8601": _TAIL + "$",
}
_NO_DATES: Final = ("02-30", "02-31", "04-31", "06-31", "09-31", "11-31")


def _timestamp_branches(
    forms: Sequence[TimestampForm], text: SqlValue, zone: SqlValue, rules: TimestampFromText
) -> str:
    """Return the WHEN branches of a CASE that gives the instant."""
    branches = []
    timed = [form for form in _ISO_TAILS if form in forms]
    if timed:
        tails = " ".join(
            f"WHEN substr({text}, 17) ~ {literal(_ISO_TAILS[form])} THEN {_iso_value(form, text, zone, rules)}"
            for form in timed
        )
        separated = f"{text} LIKE '____-__-_____:__%' AND substr({text}, 11, 1) IN ('T', ' ')"
        branches.append(
            f"WHEN {separated} AND {_is_date(text, year=1, month=6, day=9)} "
            f"AND {_is_number(text, 12, 0, 23)} AND {_is_number(text, 15, 0, 59)} THEN CASE {tails} END"
        )
    if "Iso8601Date" in forms:
        condition = f"{text} LIKE '____-__-__' AND {_is_date(text, year=1, month=6, day=9)}"
        branches.append(f"WHEN {condition} THEN {_iso_value('Iso8601Date', text, zone, rules)}")
    for form, month, day in (("DayMonthYear", 4, 1), ("MonthDayYear", 1, 4)):
        if form in forms:
            branches.append(_local_order(text, zone, rules, month=month, day=day))
    if "EpochSeconds" in forms:
        branches.append(f"WHEN {text} ~ {literal(PATTERNS['EpochSeconds'])} THEN to_timestamp(CAST({text} AS bigint))")
    if "EpochMilliseconds" in forms:
        epoch = "CAST('1970-01-01 00:00:00+00' AS timestamptz)"
        branches.append(
            f"WHEN {text} ~ {literal(PATTERNS['EpochMilliseconds'])} "
            f"THEN {epoch} + CAST({text} AS bigint) * interval '1 millisecond'"
        )
    return " ".join(branches)


def _is_number(text: SqlValue, position: int, lowest: int, highest: int) -> SqlValue:
    numbers = ", ".join(f"'{number:02}'" for number in range(lowest, highest + 1))
    return f"substr({text}, {position}, 2) IN ({numbers})"


def _is_date(text: SqlValue, *, year: int, month: int, day: int) -> SqlValue:
    """Return the condition that a date stands at the positions; 29 February is judged with the year, later."""
    digits = f"{_is_number(text, year, 0, 99)} AND {_is_number(text, year + 2, 0, 99)}"
    parts = f"{_is_number(text, month, 1, 12)} AND {_is_number(text, day, 1, 31)}"
    month_and_day = f"(substr({text}, {month}, 2) || '-' || substr({text}, {day}, 2))"
    return f"{digits} AND {parts} AND {month_and_day} NOT IN {_words(_NO_DATES)}"


def _local_order(text: SqlValue, zone: SqlValue, rules: TimestampFromText, *, month: int, day: int) -> str:
    """Return the branch of a date whose year comes last, with or without a time."""
    separators = f"substr({text}, 3, 1) IN ('/', '.', '-') AND substr({text}, 6, 1) IN ('/', '.', '-')"
    hour = f"{_is_number(text, 12, 0, 23)} AND {_is_number(text, 15, 0, 59)}"
    timed = f"({text} LIKE '__________ __:__%' AND {hour} AND substr({text}, 17) ~ {literal(_ISO_TAILS['Iso8601'])})"
    date = f"substr({text}, 7, 4) || '-' || substr({text}, {month}, 2) || '-' || substr({text}, {day}, 2)"
    iso = f"({date} || substr({text}, 11))"
    condition = f"{separators} AND {_is_date(text, year=7, month=month, day=day)} AND (length({text}) = 10 OR {timed})"
    return f"WHEN {condition} THEN {_iso_value('Iso8601', iso, zone, rules)}"


def _iso_value(form: TimestampForm, iso: SqlValue, zone: SqlValue, rules: TimestampFromText) -> SqlValue:
    """Return the instant of a text whose digits are checked; null for years out of range and 29 February in others."""
    if form == "Iso8601WithOffset":
        value = f"CAST({iso} AS timestamptz)"
    else:
        value = _from_wall_clock(f"CAST({iso} AS timestamp)", zone, rules)
    year = f"CAST(substr({iso}, 1, 4) AS int)"
    in_range = f"substr({iso}, 1, 4) COLLATE \"C\" BETWEEN '{FIRST_YEAR:04}' AND '{LAST_YEAR:04}'"
    leap = f"{year} % 4 = 0 AND ({year} % 100 <> 0 OR {year} % 400 = 0)"
    return f"CASE WHEN {in_range} AND (substr({iso}, 6, 5) <> '02-29' OR {leap}) THEN {value} END"


def _from_wall_clock(local: SqlValue, zone: SqlValue, rules: TimestampFromText) -> SqlValue:
    """Return the instant of a wall-clock time. PostgreSQL's own rule is Later and ShiftForward."""
    instant = f"({local} AT TIME ZONE {zone})"
    if rules.ambiguous == "Later" and rules.nonexistent == "ShiftForward":
        return instant
    # The instant that the offset of three hours before would give: another, earlier one when clocks went back since.
    before = f"({instant} - interval '3 hours')"
    offset = f"(({before} AT TIME ZONE {zone}) - ({before} AT TIME ZONE 'UTC'))"
    earlier = f"(({local} - {offset}) AT TIME ZONE 'UTC')"
    is_twice = f"{earlier} < {instant} AND ({earlier} AT TIME ZONE {zone}) = {local}"
    is_skipped = f"({instant} AT TIME ZONE {zone}) <> {local}"
    branches = []
    if rules.nonexistent == "Reject":
        branches.append(f"WHEN {is_skipped} THEN NULL")
    if rules.ambiguous != "Later":
        branches.append(f"WHEN {is_twice} THEN {earlier if rules.ambiguous == 'Earlier' else 'NULL'}")
    return f"CASE {' '.join(branches)} ELSE {instant} END"


def _instant_as(instant: SqlValue, target: Column) -> SqlValue:
    match target.family:
        case "timestamptz":
            return instant
        case "timestamp":
            return f"({instant} AT TIME ZONE 'UTC')"
        case "date":
            return f"CAST(({instant} AT TIME ZONE 'UTC') AS date)"
        case "text":
            return f"to_char({instant} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    raise MigrationError(
        "UnsupportedColumnType",
        f"column {target.name} of type {target.type} cannot hold a timestamp: use a timestamp, date or text column",
        retry="Never",
    )
