"""What a value of a SQLite file is in PostgreSQL: the type its column is staged as, and what does not fit it."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from .catalog import Column, Family
from .dialect import SqlValue, identifier
from .mapping import source_column
from .sqlite_functions import FALSE_WORDS, TRUE_WORDS

BOOLEAN_CONVERTER: Final = "shipkeeper_boolean"

Kind = Literal["integer", "float", "numeric", "boolean", "text", "loose", "unused", "bytes"]

_TYPES: Final[dict[Kind, tuple[str, Family]]] = {
    "integer": ("bigint", "integer"),
    "float": ("double precision", "number"),
    "numeric": ("numeric", "number"),
    "boolean": ("boolean", "boolean"),
    "text": ("text", "text"),
    # Dates, JSON, UUIDs, columns without a type: SQLite has text or numbers there, and the mapping reads their text.
    "loose": ("text", "text"),
    # A column that no value is made from is kept for the reject table alone, so that nothing in it rejects a row.
    "unused": ("text", "text"),
    "bytes": ("bytea", "bytes"),
}
_FLOATS: Final = ("REAL", "FLOA", "DOUB")
_LONGEST_SHOWN: Final = 200


class _Booleans(dict[bytes, Any]):
    """SQLite's numbers as truth values; what is neither stays as its text, and its row is looked at."""

    def __missing__(self, raw: bytes) -> str:
        return raw.decode("utf-8", "surrogateescape")


sqlite3.register_converter(BOOLEAN_CONVERTER, _Booleans({b"0": False, b"1": True}).__getitem__)


@dataclass(frozen=True, kw_only=True)
class StagedColumn:
    """A column of the file and what it is staged as."""

    staged: Column
    kind: Kind

    @property
    def _value(self) -> SqlValue:
        return source_column(self.staged.name)

    def read_sql(self) -> SqlValue:
        """Return the expression that reads it."""
        match self.kind:
            case "boolean":
                return f"{self._value} AS {identifier(f'{self.staged.name} [{BOOLEAN_CONVERTER}]')}"
            case "loose" | "unused":
                return (
                    f"CASE typeof({self._value}) WHEN 'integer' THEN CAST({self._value} AS TEXT) ELSE {self._value} END"
                )
        return self._value

    def fits_sql(self) -> SqlValue:
        """Return the condition that its value can be staged as it is read."""
        value = self._value
        is_text = f"(typeof({value}) = 'text' AND instr({value}, char(0)) = 0)"
        match self.kind:
            case "integer":
                return f"typeof({value}) IN ('integer', 'null')"
            case "float" | "numeric":
                return f"typeof({value}) IN ('real', 'integer', 'null')"
            case "boolean":
                return f"({value} IS NULL OR (typeof({value}) = 'integer' AND {value} IN (0, 1)))"
            case "bytes":
                return f"typeof({value}) IN ('blob', 'null')"
            case "loose" | "unused":
                return f"({value} IS NULL OR typeof({value}) = 'integer' OR {is_text})"
        return f"({value} IS NULL OR {is_text})"


def staged_column(column: Column, *, is_used: bool, is_key: bool) -> StagedColumn:
    """Decide what a column is staged as."""
    if is_key:
        return StagedColumn(staged=column, kind="integer" if column.family == "integer" else "text")
    kind = _kind(column) if is_used else "unused"
    type_, family = _TYPES[kind]
    staged = Column(
        name=column.name, type=type_, family=family, nullable=column.nullable, has_default=column.has_default
    )
    return StagedColumn(staged=staged, kind=kind)


def _kind(column: Column) -> Kind:
    match column.family:
        case "integer":
            return "integer"
        case "number":
            return "float" if any(word in column.type.upper() for word in _FLOATS) else "numeric"
        case "boolean":
            return "boolean"
        case "text":
            return "text"
        case "bytes":
            return "bytes"
    return "loose"


def fitting(row: Sequence[Any], columns: Sequence[StagedColumn]) -> Sequence[Any]:
    """Return the row as it can be staged: what does not fit is null, and named in the last value."""
    values, misfits = [], []
    for value, column in zip(row, columns, strict=False):
        try:
            values.append(None if value is None else _fitting(value, column.kind))
        except ValueError as error:
            values.append(None)
            misfits.append(f"{column.staged.name} holds {_shown(value)}: {error}")
    return (*values, "; ".join(misfits) or None)


def _fitting(value: Any, kind: Kind) -> Any:
    match kind:
        case "integer":
            if isinstance(value, int):
                return value
            raise ValueError("not a whole number")
        case "float" | "numeric":
            if isinstance(value, (int, float)):
                return value
            raise ValueError("not a number")
        case "boolean":
            return _boolean(value)
        case "bytes":
            if isinstance(value, bytes):
                return value
            raise ValueError("not bytes")
        case "unused":
            return _any_text(value)
    return _text(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("not a truth value")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        raise ValueError("bytes, not text")
    text = value if isinstance(value, str) else repr(value)
    if "\0" in text:
        raise ValueError("text with a NUL character, which PostgreSQL cannot hold")
    if not _is_unicode(text):
        raise ValueError("text that is not UTF-8")
    return text


def _any_text(value: Any) -> str:
    """Return the value as text in any case, to be shown to people."""
    text = "\\x" + value.hex() if isinstance(value, bytes) else value if isinstance(value, str) else repr(value)
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    shown = _any_text(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
