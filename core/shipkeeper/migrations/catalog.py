"""What the database says of its tables: columns, types, keys. The plan and the generated SQL are made from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from .errors import MigrationError

Family = Literal[
    "integer",
    "number",
    "text",
    "boolean",
    "timestamp",
    "timestamptz",
    "date",
    "json",
    "jsonb",
    "uuid",
    "bytes",
    "other",
]


class Readable(Protocol):
    """A database that answers queries."""

    async def rows(self, sql: str, *parameters: Any) -> Sequence[Any]:
        """Run a query and return all its rows."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table."""

    name: str
    type: str
    """The type as the database writes it, for use in a CAST."""
    family: Family
    nullable: bool
    has_default: bool
    """It gets a value by itself: a default, an identity, a sequence or a generated column."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, as it is now."""

    name: str
    """As the spec writes it, with its schema where the spec gives one."""
    columns: Mapping[str, Column]
    unique_keys: frozenset[frozenset[str]]
    """Sets of columns that no two rows share, by a constraint or a plain unique index."""
    staged_in: str | None = None
    """The temporary table that holds the rows at hand, where the table itself stands in another database."""

    @property
    def relation(self) -> str:
        """What statements read its rows from, quoted."""
        return quoted_name(self.staged_in or self.name)

    def column(self, name: str, *, used_by: str) -> Column:
        """Return the column.

        Raises MigrationError (ColumnMissing) naming the column and what uses it.
        """
        found = self.columns.get(name)
        if found is None:
            raise MigrationError(
                "ColumnMissing",
                f"{used_by}: table {self.name} has no column {name}; it has {', '.join(sorted(self.columns))}",
                retry="WhenMended",
            )
        return found


_POSTGRESQL_FAMILIES: Final[Mapping[str, Family]] = {
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "float4": "number",
    "float8": "number",
    "numeric": "number",
    "text": "text",
    "varchar": "text",
    "bpchar": "text",
    "name": "text",
    "bool": "boolean",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "date": "date",
    "json": "json",
    "jsonb": "jsonb",
    "uuid": "uuid",
    "bytea": "bytes",
}

_POSTGRESQL_COLUMNS: Final = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), t.typname, NOT a.attnotnull,
       a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> ''
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_POSTGRESQL_UNIQUE: Final = """
SELECT i.indexrelid::bigint, a.attname
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid
  AND i.indpred IS NULL AND i.indexprs IS NULL
"""


async def read_table(session: Readable, name: str, *, sqlite: bool) -> Table | None:
    """Read a table's columns and unique keys, or None where there is no such table."""
    return await (_read_sqlite(session, name) if sqlite else _read_postgresql(session, name))


async def require_table(session: Readable, name: str, *, sqlite: bool, used_by: str) -> Table:
    """Read a table.

    Raises MigrationError (TableMissing) naming the table and what uses it.
    """
    table = await read_table(session, name, sqlite=sqlite)
    if table is None:
        raise MigrationError(
            "TableMissing",
            f"{used_by}: there is no table {name}: create it, or correct its name in the step",
            retry="WhenMended",
        )
    return table


def quoted_name(name: str) -> str:
    """Return a table's name in SQL: each part quoted, so that its case is kept."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


async def _read_postgresql(session: Readable, name: str) -> Table | None:
    regclass = quoted_name(name)
    found = await session.rows(_POSTGRESQL_COLUMNS, regclass)
    if not found:
        return None
    columns = [
        Column(
            name=column,
            type=full_type,
            family=_POSTGRESQL_FAMILIES.get(type_name, "other"),
            nullable=nullable,
            has_default=has_default,
        )
        for column, full_type, type_name, nullable, has_default in found
    ]
    keys: dict[int, set[str]] = {}
    for index, column in await session.rows(_POSTGRESQL_UNIQUE, regclass):
        keys.setdefault(index, set()).add(column)
    return Table(
        name=name,
        columns={column.name: column for column in columns},
        unique_keys=frozenset(frozenset(key) for key in keys.values()),
    )


async def _read_sqlite(session: Readable, name: str) -> Table | None:
    if "." in name:
        raise MigrationError(
            "TableMissing", f"{name}: SQLite has no schemas; write the table's name alone", retry="WhenMended"
        )
    found = await session.rows(f"PRAGMA table_info({quoted_name(name)})")
    if not found:
        return None
    columns = [
        Column(
            name=column,
            type=declared or "BLOB",
            family=sqlite_family(declared),
            nullable=not not_null and not position,
            has_default=default is not None or _is_rowid(declared, position),
        )
        for _, column, declared, not_null, default, position in found
    ]
    keys = {frozenset(column for _, column, _, _, _, position in found if position)} - {frozenset()}
    for _, index, unique, _, partial in await session.rows(f"PRAGMA index_list({quoted_name(name)})"):
        members = [row[2] for row in await session.rows(f"PRAGMA index_info({quoted_name(index)})")]
        if unique and not partial and None not in members:
            keys.add(frozenset(members))
    return Table(name=name, columns={column.name: column for column in columns}, unique_keys=frozenset(keys))


def _is_rowid(declared: str, position: int) -> bool:
    return bool(position) and declared.upper() == "INTEGER"


def sqlite_family(declared: str) -> Family:
    """Return the family of a declared SQLite type; what matters is how SQLAlchemy and SQLite treat its values."""
    name = declared.upper()
    for words, family in _SQLITE_FAMILIES:
        if any(word in name for word in words):
            return family
    return "other"


_SQLITE_FAMILIES: Final[tuple[tuple[tuple[str, ...], Family], ...]] = (
    (("BOOL",), "boolean"),
    (("TIMESTAMP", "DATETIME"), "timestamp"),
    (("DATE",), "date"),
    (("JSON",), "json"),
    (("UUID",), "uuid"),
    (("INT",), "integer"),
    (("CHAR", "CLOB", "TEXT"), "text"),
    (("REAL", "FLOA", "DOUB", "NUMERIC", "DECIMAL"), "number"),
    (("BLOB",), "bytes"),
)
