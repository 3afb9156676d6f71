"""The SQLite dialect: SQL where SQLite has it, and the functions of sqlite_functions.py where it has not."""

from collections.abc import Sequence
from typing import Final

from shipkeeper.resources.migrationmapping import JsonType, TimestampFromText

from .catalog import Column, Family
from .dialect import SqlValue, identifier, literal
from .errors import MigrationError
from .sqlite_functions import TRUE_WORDS

_BLANKS: Final = "char(32, 9, 13, 10)"
_NUMERIC: Final = ("integer", "number", "boolean")


class SqliteDialect:
    """How SQLite says it."""

    name = "sqlite"

    def parameter(self, number: int) -> SqlValue:
        """Return the placeholder."""
        return f"?{number}"

    def key_parameter(self, number: int, column: Column) -> SqlValue:
        """Return the placeholder as the key's storage class: SQLite compares 5 and '5' as different."""
        return f"CAST(?{number} AS INTEGER)" if column.family == "integer" else f"?{number}"

    def as_text(self, expression: SqlValue) -> SqlValue:
        """Return the expression cast to text."""
        return f"CAST({expression} AS TEXT)"

    def joined_key(self, parts: Sequence[SqlValue]) -> SqlValue:
        """Return the key's text."""
        return f"({' || char(31) || '.join(parts)})"

    def is_blank(self, expression: SqlValue, column: Column) -> SqlValue:
        """Return the condition that the value is null or blank. In SQLite a column of any type may hold text."""
        return f"(coalesce(trim(CAST({expression} AS TEXT), {_BLANKS}), '') = '')"

    def stored(self, expression: SqlValue, *, source: Column | None, target: Column) -> SqlValue:
        """Return the expression: SQLite converts by the column's affinity when it stores it."""
        return expression

    def constant(self, text: str, target: Column) -> SqlValue:
        """Return the constant; in a column of truth values, as 0 or 1."""
        if target.family == "boolean":
            return "1" if text.strip().lower() in TRUE_WORDS else "0"
        return literal(text)

    def timestamp(self, expression: SqlValue, *, source: Column, rules: TimestampFromText, target: Column) -> SqlValue:
        """Return the instant that the text names."""
        instant = f"shipkeeper_timestamp({expression}, {literal(rules.model_dump_json(by_alias=True))})"
        return _instant_as(instant, target)

    def run_start(self, instant: str, target: Column) -> SqlValue:
        """Return the instant as the target stores it."""
        return _instant_as(literal(instant), target)

    def convertible(self, expression: SqlValue, *, type_: JsonType, source: Column | None) -> SqlValue:
        """Return the value converted, null where it cannot be."""
        match type_:
            case "Boolean":
                return f"shipkeeper_boolean({expression})"
            case "Integer":
                return f"shipkeeper_integer({expression})"
            case "Number":
                return f"shipkeeper_number({expression})"
            case "Text":
                return f"CAST({expression} AS TEXT)"
            case "Json":
                return f"CASE WHEN json_valid({expression}) THEN {expression} END"
        return expression

    def json_member(self, converted: SqlValue, *, type_: JsonType) -> SqlValue:
        """Return the value as a member. JSON's own types exist only within one expression in SQLite."""
        match type_:
            case "Boolean":
                return f"CASE {converted} WHEN 1 THEN json('true') WHEN 0 THEN json('false') END"
            case "Json":
                return f"json({converted})"
        return converted

    def json_object(self, members: Sequence[tuple[str, SqlValue]], target: Column) -> SqlValue:
        """Return the object as JSON text."""
        return f"json_object({', '.join(f'{literal(name)}, {value}' for name, value in members)})"

    def json_object_digested(self, members: Sequence[tuple[str, SqlValue, Family]], target: Column) -> SqlValue | None:
        """Return None: json_object gives text."""
        return None

    def json_field(self, expression: SqlValue, field: str, column: Column) -> SqlValue:
        """Return the text of the field; null where the text is no JSON."""
        path = literal('$."' + field.replace('"', '\\"') + '"')
        return f"CASE WHEN json_valid({expression}) THEN CAST(json_extract({expression}, {path}) AS TEXT) END"

    def row_as_json(self, alias: str, columns: Sequence[Column]) -> SqlValue:
        """Return the row as JSON text; bytes, which JSON cannot hold, as hex."""
        members = []
        for column in columns:
            value = f"{alias}.{identifier(column.name)}"
            safe = f"CASE typeof({value}) WHEN 'blob' THEN hex({value}) ELSE {value} END"
            members.append(f"{literal(column.name)}, {safe}")
        return f"json_object({', '.join(members)})"

    def digest(self, expressions: Sequence[SqlValue], targets: Sequence[Column]) -> SqlValue:
        """Return a 62-bit hash; a numeric column's values count as numbers, as its affinity stores them."""
        values = (
            f"CASE WHEN typeof({value}) = 'text' THEN coalesce(shipkeeper_number({value}), {value}) ELSE {value} END"
            if target.family in _NUMERIC
            else value
            for value, target in zip(expressions, targets, strict=True)
        )
        return f"shipkeeper_digest({', '.join(values)})"

    def digest_sums(self, digest: SqlValue) -> Sequence[SqlValue]:
        """Return the sums of both halves: a sum of whole hashes would overflow."""
        return (f"sum({digest} & 2147483647)", f"sum({digest} >> 31)")

    def key_range(self, key: Column, expression: SqlValue, *, size: int, bounds: Sequence[str]) -> SqlValue:
        """Return the number of the key range."""
        if key.family == "integer":
            return f"shipkeeper_integer({expression}) / {size}"
        return f"shipkeeper_range({expression}, {literal(chr(0x1F).join(bounds))})"

    def fence(self) -> SqlValue:
        """Return a LIMIT that cuts nothing, but keeps the subquery from being flattened."""
        return "LIMIT -1 OFFSET 0"


def _instant_as(instant: SqlValue, target: Column) -> SqlValue:
    match target.family:
        case "timestamp" | "timestamptz":
            return instant
        case "date":
            return f"substr({instant}, 1, 10)"
        case "text":
            return f"(replace({instant}, ' ', 'T') || 'Z')"
    raise MigrationError(
        "UnsupportedColumnType",
        f"column {target.name} of type {target.type} cannot hold a timestamp: use a timestamp, date or text column",
        retry="Never",
    )
