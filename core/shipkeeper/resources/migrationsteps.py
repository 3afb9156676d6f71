"""The steps of a migration: what each may declare, and what it refuses."""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .base import Duration, ResourceModel, cel, list_map, with_cel
from .migrationmapping import (
    ColumnMapping,
    ColumnName,
    ConstantText,
    SqlText,
    TableName,
    exactly_one,
    exactly_one_rule,
    refuse_repeated,
)
from .schedule import Span, milliseconds

_ONE_INDEX_PART: Final = "an index part needs exactly one of column or expression"
_INDEX_PARTS: Final = ("column", "expression")


class IndexPart(ResourceModel):
    """One key of an index."""

    model_config = ConfigDict(json_schema_extra=with_cel(exactly_one_rule(_INDEX_PARTS, _ONE_INDEX_PART)))

    column: ColumnName | None = None
    """The column."""
    expression: SqlText | None = None
    """An SQL expression over the table's columns."""
    order: Literal["Ascending", "Descending"] = "Ascending"
    """Order of the key."""

    @model_validator(mode="after")
    def _is_one_part(self) -> Self:
        exactly_one(self, _INDEX_PARTS, _ONE_INDEX_PART)
        return self


_HASH_INDEX: Final = "method Hash takes one key, and is never unique; use BTree"


class Index(ResourceModel):
    """An index that must exist, be valid, and have exactly this definition."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("self.method != 'Hash' || (self.keys.size() == 1 && !self.unique)", _HASH_INDEX),
        )
    )

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_$]*$")]
    """Name of the index. One of that name which is invalid or differs is dropped and built again."""
    table: TableName
    """The table."""
    keys: tuple[IndexPart, ...] = Field(min_length=1, max_length=32)
    """The keys, in order."""
    unique: bool = False
    """Refuse two rows with the same keys."""
    where: SqlText | None = None
    """Index only the rows for which this SQL condition holds (a partial index)."""
    include: tuple[ColumnName, ...] = Field(default=(), max_length=32)
    """Columns stored beside the keys (PostgreSQL only; SQLite has no such thing and the plan refuses it)."""
    method: Literal["BTree", "Hash", "Gin", "Gist", "Brin"] = "BTree"
    """Access method (SQLite knows BTree only)."""

    @model_validator(mode="after")
    def _method_allows_the_keys(self) -> Self:
        if self.method == "Hash" and (len(self.keys) != 1 or self.unique):
            raise ValueError(f"{self.name}: {_HASH_INDEX}")
        return self


class CreateIndexes(ResourceModel):
    """Build what is missing, repair what is invalid or differs, then ANALYZE. CONCURRENTLY on PostgreSQL."""

    indexes: tuple[Index, ...] = Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))
    """The indexes."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        refuse_repeated("createIndexes.indexes", [index.name for index in self.indexes])
        return self


_IDENTITY_PARTS: Final = ("source", "constant")
_ONE_IDENTITY_PART: Final = "a part of identity needs exactly one of source or constant"


class IdentityPart(ResourceModel):
    """One value in a target row by which it says which source row it came from."""

    model_config = ConfigDict(json_schema_extra=with_cel(exactly_one_rule(_IDENTITY_PARTS, _ONE_IDENTITY_PART)))

    column: ColumnName
    """Column of the target table."""
    field: str | None = Field(default=None, min_length=1, max_length=63)
    """Field of the JSON object in that column; absent: the column's own value."""
    source: ColumnName | None = None
    """The key column of the source whose value stands there."""
    constant: ConstantText | None = None
    """The fixed value that stands there."""

    @model_validator(mode="after")
    def _is_one_part(self) -> Self:
        exactly_one(self, _IDENTITY_PARTS, f"{self.column}: {_ONE_IDENTITY_PART}")
        return self


class SkipExisting(ResourceModel):
    """Rows that an earlier tool already copied without leaving the identity: found by equal target columns."""

    columns: tuple[ColumnName, ...] = Field(min_length=1, max_length=8)
    """A source row is already there when a target row without the identity equals it in all these columns."""


_IDENTITY_COVERS_KEY: Final = (
    "consolidate.identity must hold each column of key once as source: "
    "by it a target row tells which source row it came from"
)
_SAME_TABLE: Final = "consolidate.target must be another table than source; to change rows in place use backfill"


class Consolidate(ResourceModel):
    """Copy the rows of one table into another in batches, each in one transaction with its checkpoint."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel(
                "self.key.all(k, self.identity.exists_one(part, has(part.source) && part.source == k))"
                " && self.identity.all(part, !has(part.source) || part.source in self.key)",
                _IDENTITY_COVERS_KEY,
            ),
            cel("self.source != self.target", _SAME_TABLE),
        )
    )

    source: TableName
    """The table whose rows are copied. It is only read."""
    target: TableName
    """The table that receives them."""
    key: tuple[ColumnName, ...] = Field(min_length=1, max_length=4)
    """The columns of the source that are unique and never null; batches are ranges of this key."""
    identity: tuple[IdentityPart, ...] = Field(min_length=1, max_length=8)
    """What in a target row says which source row it came from. Rows that carry it are never copied again, verification
    compares by it, and a rollback removes by it."""
    columns: tuple[ColumnMapping, ...] = Field(min_length=1, max_length=128, json_schema_extra=list_map("name"))
    """How each column of the target gets its value. A column that is not named takes its default."""
    filter: SqlText | None = None
    """Copy only the source rows for which this SQL condition holds; columns are named as source.column."""
    skip_existing: SkipExisting | None = None
    """How to know rows that an earlier tool copied without leaving the identity."""
    existing_content: Literal["Trust", "Verify"] = "Trust"
    """Whether verification compares rows that were already there by identity, or trusts what another tool wrote."""
    follow: bool = False
    """Go on taking rows that are appended after the step began, until cut-over. Off: the rows present at the start."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse_repeated("consolidate.columns", [column.name for column in self.columns])
        sources = sorted(part.source for part in self.identity if part.source is not None)
        if sources != sorted(self.key):
            raise ValueError(_IDENTITY_COVERS_KEY)
        if self.source == self.target:
            raise ValueError(_SAME_TABLE)
        return self


class Assignment(ResourceModel):
    """One column that a backfill sets."""

    name: ColumnName
    """The column."""
    expression: SqlText
    """Its new value: an SQL expression over the row's columns."""


_KEY_ASSIGNED: Final = "backfill.assignments must not set a column of key: batches are ranges of it"


class Backfill(ResourceModel):
    """Update the rows of a table in batches."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("self.assignments.all(a, !(a.name in self.key))", _KEY_ASSIGNED))
    )

    table: TableName
    """The table."""
    key: tuple[ColumnName, ...] = Field(min_length=1, max_length=4)
    """Columns that are unique and never null; batches are ranges of this key."""
    assignments: tuple[Assignment, ...] = Field(min_length=1, max_length=32, json_schema_extra=list_map("name"))
    """The columns to set."""
    where: SqlText
    """Which rows still need it, so that a row is changed once and the step can tell when it is done. It must not hold
    for a row whose columns are set."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse_repeated("backfill.assignments", [each.name for each in self.assignments])
        if {each.name for each in self.assignments} & set(self.key):
            raise ValueError(_KEY_ASSIGNED)
        return self


_TIMEOUT_BOUND: Final = "sql.timeout must be longer than zero"


class Sql(ResourceModel):
    """A statement that the other steps cannot say, guarded so that it runs only while it is needed."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("duration(self.timeout) > duration('0s')", _TIMEOUT_BOUND))
    )

    statement: Annotated[str, Field(min_length=1, max_length=8192)]
    """One SQL statement, run in a transaction of its own."""
    unless: SqlText
    """A query that gives a row when the statement is already done; then it is skipped. Asked again after it."""
    timeout: Span = "5m"
    """Longest duration of the statement; one that takes longer is cancelled and rolled back. Its wait for locks is
    bounded by locks.tableTimeout."""
    destructive: bool = False
    """The statement may lose data: the plan lists it, and it runs only after verification. One that drops, truncates
    or deletes is known without this."""

    @model_validator(mode="after")
    def _has_time(self) -> Self:
        if milliseconds(self.timeout) <= 0:
            raise ValueError(_TIMEOUT_BOUND)
        return self


_DROP_NEEDS_RETENTION: Final = "retire.retention is needed with action Drop, and only there: how long to keep the table"


class Retire(ResourceModel):
    """Take a consolidated table out of use. Never implied: only where declared, and only after verification."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("(self.action == 'Drop') == has(self.retention)", _DROP_NEEDS_RETENTION))
    )

    table: TableName
    """The table; an earlier step of this migration must consolidate it."""
    action: Literal["Rename", "Drop"] = "Rename"
    """Rename: to <table>_retired. Drop: rename now, and drop when the retention has passed."""
    retention: Duration | None = None
    """How long a table that is to be dropped stays under its new name."""

    @model_validator(mode="after")
    def _drop_has_a_retention(self) -> Self:
        if (self.action == "Drop") != (self.retention is not None):
            raise ValueError(_DROP_NEEDS_RETENTION)
        return self


_WORK: Final = ("createIndexes", "consolidate", "backfill", "sql", "retire")
_PYTHON_WORK: Final = ("create_indexes", "consolidate", "backfill", "sql", "retire")
_ONE_WORK: Final = "a step needs exactly one of createIndexes, consolidate, backfill, sql or retire"


class Step(ResourceModel):
    """One step. Steps run in order; each is resumable and may be run again without harm."""

    model_config = ConfigDict(json_schema_extra=with_cel(exactly_one_rule(_WORK, _ONE_WORK)))

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """Name of the step, by which the ledger and the status know it."""
    create_indexes: CreateIndexes | None = None
    """Have these indexes."""
    consolidate: Consolidate | None = None
    """Copy a table into another."""
    backfill: Backfill | None = None
    """Update rows in batches."""
    sql: Sql | None = None
    """Run a guarded statement."""
    retire: Retire | None = None
    """Take a consolidated table out of use."""

    @model_validator(mode="after")
    def _is_one_work(self) -> Self:
        exactly_one(self, _PYTHON_WORK, f"step {self.name}: {_ONE_WORK}")
        return self
