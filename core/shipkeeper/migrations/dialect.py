"""What the generated SQL needs to know of a database: one small language of expressions, spoken by two dialects."""

from collections.abc import Sequence
from typing import Protocol

from shipkeeper.resources.migrationmapping import JsonType, TimestampFromText

from .catalog import Column, Family

KEY_SEPARATOR = "\x1f"
"""Between the parts of a composite key's text: a character that no real key holds."""

SqlValue = str
"""An SQL expression, as text."""


class Dialect(Protocol):
    """The differences between PostgreSQL and SQLite."""

    name: str

    def parameter(self, number: int) -> SqlValue:
        """Return the placeholder of the numbered parameter, which is bound as text."""

    def key_parameter(self, number: int, column: Column) -> SqlValue:
        """Return the placeholder as a value of the key column's type, so that an index serves the comparison."""

    def as_text(self, expression: SqlValue) -> SqlValue:
        """Return the expression as text."""

    def joined_key(self, parts: Sequence[SqlValue]) -> SqlValue:
        """Return the text of a key: its parts, as text, with KEY_SEPARATOR between them."""

    def is_blank(self, expression: SqlValue, column: Column) -> SqlValue:
        """Return the condition that the column's value is null or nothing but spaces."""

    def stored(self, expression: SqlValue, *, source: Column | None, target: Column) -> SqlValue:
        """Return the expression as the target column stores it. A value too long for it must fail, not shrink."""

    def constant(self, text: str, target: Column) -> SqlValue:
        """Return the constant as the target column stores it."""

    def timestamp(self, expression: SqlValue, *, source: Column, rules: TimestampFromText, target: Column) -> SqlValue:
        """Return the instant that the text names as the target column stores it; null where it names none."""

    def run_start(self, instant: str, target: Column) -> SqlValue:
        """Return the instant (naive UTC, ISO) as the target column stores it."""

    def convertible(self, expression: SqlValue, *, type_: JsonType, source: Column | None) -> SqlValue:
        """Return the value converted to a JSON type, in a form that survives a subquery; null where it cannot be."""

    def json_member(self, converted: SqlValue, *, type_: JsonType) -> SqlValue:
        """Return a converted value as a member of a JSON object."""

    def json_object(self, members: Sequence[tuple[str, SqlValue]], target: Column) -> SqlValue:
        """Return a JSON object, as the target column stores it."""

    def json_object_digested(self, members: Sequence[tuple[str, SqlValue, Family]], target: Column) -> SqlValue | None:
        """Return the text that the target would hold of the JSON object, where it is cheaper than the object.

        Members have the families of their values; any that is not known for sure is "other".
        """

    def json_field(self, expression: SqlValue, field: str, column: Column) -> SqlValue:
        """Return the text of a field of a JSON object; null where there is none."""

    def row_as_json(self, alias: str, columns: Sequence[Column]) -> SqlValue:
        """Return a whole row as JSON text."""

    def digest(self, expressions: Sequence[SqlValue], targets: Sequence[Column]) -> SqlValue:
        """Return a number that differs, all but surely, where any of the values differs."""

    def digest_sums(self, digest: SqlValue) -> Sequence[SqlValue]:
        """Return aggregates that together are the digest of a set of rows."""

    def key_range(self, key: Column, expression: SqlValue, *, size: int, bounds: Sequence[str]) -> SqlValue:
        """Return the number of the key range that a key (given as text) lies in; null where it is no such key.

        Ranges of an integer key have a fixed width; those of any other begin at the bounds.
        """

    def fence(self) -> SqlValue:
        """Return the clause that keeps a subquery's expressions from being computed more than once."""


def literal(text: str) -> SqlValue:
    """Return text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> SqlValue:
    """Return a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
