"""The PostgreSQL dialect: everything as set-based SQL, so that the server converts, copies and compares by itself."""

import json
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final

from shipkeeper.resources.migrationmapping import JsonType, TimestampForm, TimestampFromText

from .catalog import Column, Family
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
            usual = _usual_iso(rules.forms, text, zone, rules)
            instant = f"coalesce({usual}, {_any_form(rules.forms, trimmed, zone, rules)})"
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

    def json_object_digested(self, members: Sequence[tuple[str, SqlValue, Family]], target: Column) -> SqlValue | None:
        """Return the text that json_build_object gives, at half its cost; jsonb is digested by its value."""
        if target.family != "json" or not members:
            return None
        fields = (
            f"{literal(f'{json.dumps(name, ensure_ascii=False)} : ')} || {_json_text(value, family)}"
            for name, value, family in members
        )
        separator = " || ', ' || "
        return f"('{{' || {separator.join(fields)} || '}}')"

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


def _json_text(value: SqlValue, family: Family) -> SqlValue:
    match family:
        case "boolean":
            return f"CASE WHEN {value} THEN 'true' WHEN NOT {value} THEN 'false' ELSE 'null' END"
        case "integer":
            return f"coalesce(CAST({value} AS text), 'null')"
    return f"coalesce(CAST(to_json({value}) AS text), 'null')"


def _words(words: Sequence[str]) -> SqlValue:
    return f"({', '.join(literal(word) for word in words)})"


def _any_form(forms: Sequence[TimestampForm], text: SqlValue, zone: SqlValue, rules: TimestampFromText) -> SqlValue:
    """Return the instant by the forms' patterns: complete, but PostgreSQL builds a matcher for every row."""
    return f"CASE {' '.join(_branch(form, text, zone, rules) for form in forms)} END"


def _branch(form: TimestampForm, text: SqlValue, zone: SqlValue, rules: TimestampFromText) -> SqlValue:
    condition = f"WHEN {text} ~ {literal(PATTERNS[form])} THEN"
    match form:
        case "EpochSeconds":
            return f"{condition} to_timestamp(CAST({text} AS bigint))"
        case "EpochMilliseconds":
            epoch = "CAST('1970-01-01 00:00:00+00' AS timestamptz)"
            return f"{condition} {epoch} + CAST({text} AS bigint) * interval '1 millisecond'"
        case "Iso8601WithOffset":
            return f"{condition} {_where_date_exists(text, f'CAST({text} AS timestamptz)')}"
        case "DayMonthYear":
            text = _as_iso(text, month=4, day=1)
        case "MonthDayYear":
            text = _as_iso(text, month=1, day=4)
    local = _from_wall_clock(f"CAST({text} AS timestamp)", zone, rules)
    return f"{condition} {_where_date_exists(text, local)}"


def _as_iso(text: SqlValue, *, month: int, day: int) -> SqlValue:
    date = f"substr({text}, 7, 4) || '-' || substr({text}, {month}, 2) || '-' || substr({text}, {day}, 2)"
    return f"({date} || substr({text}, 11))"


def _where_date_exists(iso: SqlValue, value: SqlValue) -> SqlValue:
    """Guard the value with what the pattern cannot say: the year's range, and 29 February only in leap years."""
    year = f"CAST(substr({iso}, 1, 4) AS int)"
    in_range = f"{year} BETWEEN {FIRST_YEAR} AND {LAST_YEAR}"
    leap = f"{year} % 4 = 0 AND ({year} % 100 <> 0 OR {year} % 400 = 0)"
    return f"CASE WHEN {in_range} AND (substr({iso}, 6, 5) <> '02-29' OR {leap}) THEN {value} END"


_DAYS: Final = tuple(
    (date(2023, 1, 1) + timedelta(days=day)).strftime("%m-%d")  # A year without 29 February.
    for day in range(365)
)
_OFFSETS: Final = tuple(
    f"{sign}{hour:02}:{minute}" for sign in "+-" for hour in range(15) for minute in ("00", "30", "45")
)


def _usual_iso(forms: Sequence[TimestampForm], text: SqlValue, zone: SqlValue, rules: TimestampFromText) -> SqlValue:
    """Return the instant of text in the usual spelling of the ISO forms, and null for all other text.

    It admits a part of what the patterns admit, at a third of their cost: with seconds, in the years 1900 to 2199, not
    on 29 February, with an offset of whole, half or three quarter hours. Two characters are looked up in a list, which
    PostgreSQL hashes once per statement.
    """
    checks = [
        f"{text} LIKE '____-__-_____:__:__%'",
        f"substr({text}, 11, 1) IN ('T', ' ')",
        f"substr({text}, 1, 2) IN ('19', '20', '21')",
        _is_number(text, 3, 99),
        f"substr({text}, 6, 5) IN {_words(_DAYS)}",
        _is_number(text, 12, 23),
        _is_number(text, 15, 59),
        _is_number(text, 18, 59),
    ]
    # What is admitted is ASCII: by the checks in the first 19 places, by the tests below in the others.
    length = f"octet_length({text})"
    branches = []
    if "Iso8601" in forms:
        local = _from_wall_clock(f"CAST({text} AS timestamp)", zone, rules)
        fraction = _has_fraction(text, then="''")
        branches.append(f"WHEN {length} = 19 OR ({length} BETWEEN 21 AND 26 AND {fraction}) THEN {local}")
    if "Iso8601WithOffset" in forms:
        last = f"substr({text}, {length} - 5)"
        fraction = _has_fraction(text, then=last)
        places = f"({length} = 25 OR ({length} BETWEEN 27 AND 32 AND {fraction}))"
        branches.append(f"WHEN {places} AND {last} IN {_words(_OFFSETS)} THEN CAST({text} AS timestamptz)")
    if not branches:
        return "NULL"
    return f"CASE WHEN {' AND '.join(checks)} THEN CASE {' '.join(branches)} END END"


def _has_fraction(text: SqlValue, *, then: SqlValue) -> SqlValue:
    return f"substr({text}, 20, 1) = '.' AND ltrim(substr({text}, 21), '0123456789') = {then}"


def _is_number(text: SqlValue, position: int, highest: int) -> SqlValue:
    return f"substr({text}, {position}, 2) IN {_words([f'{number:02}' for number in range(highest + 1)])}"


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
