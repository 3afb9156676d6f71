"""Another database from which tables are consolidated: what the engine asks of it.

The rows of a batch are brought by COPY into a temporary table of the target, in the batch's own transaction. From there
on everything is as with a table of the target itself: the same mapping, rejects, counts, ledger and digests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shipkeeper.resources.migrationsteps import Consolidate

from .catalog import Column, Table, quoted_name
from .copying import CopyStatements
from .database import Session
from .dialect import Dialect, identifier
from .errors import MigrationError
from .ledger import Key
from .mapping import CompiledMapping, source_column

TEMPORARY_SCHEMA = "pg_temp"
MISFIT_COLUMN = "shipkeeper_misfit"
"""The staged column that says which value of a row its column cannot hold; null in nearly every row."""


@dataclass(frozen=True, kw_only=True)
class StagedRange:
    """Rows that were brought into the temporary table."""

    last: Key
    """Key of the last row, in the order of the source."""
    rows: int


class SourceTable(Protocol):
    """One table of the source, as one step reads it."""

    staged: Table
    """The table with the columns that its temporary counterpart has."""
    original: CopyStatements
    """Statements for the source database itself, with the step's filter."""

    async def last_key(self) -> Key | None:
        """Return the highest key, in the order of the source; None where there is no row."""

    async def count(self, upper: Key) -> int:
        """Return the number of rows up to the key."""

    async def every(self, size: int, *, upper: Key) -> Sequence[str]:
        """Return the first part of every size-th key up to the key, as text."""

    async def stage(self, target: Session, *, after: Key | None, upper: Key, size: int) -> StagedRange | None:
        """Bring the next rows, at most so many, into the temporary table, in the target's running transaction.

        None: there is no row left. Raises MigrationError whose message begins with "source:" where the source fails.
        """


class Source(Protocol):
    """The other database. It is opened when it is first needed: work that is done needs it no more."""

    async def table(self, step: Consolidate, *, staging: str, used_by: str) -> SourceTable:
        """Describe the step's source table; `staging` is the name of the temporary table.

        Raises MigrationError where the database, the table or its key is not as the step needs it.
        """

    async def table_bytes(self, name: str) -> int:
        """Return how much space the table takes (a SQLite file: the whole file)."""

    async def retiring_session(self, table: str) -> Session:
        """Return a session that may rename the table.

        Raises MigrationError: SourceReadOnly for a SQLite file, which is only read, or a standby; PermissionDenied.
        """

    async def close(self) -> None:
        """Close it."""


@dataclass(frozen=True, kw_only=True)
class Staging:
    """The temporary table."""

    name: str
    columns: tuple[Column, ...]

    @property
    def relation(self) -> str:
        """Its name in statements."""
        return quoted_name(f"{TEMPORARY_SCHEMA}.{self.name}")

    @property
    def column_names(self) -> list[str]:
        """Its columns, in order."""
        return [column.name for column in self.columns]

    async def create(self, target: Session) -> None:
        """Have it, in the running transaction. It is empty whenever a transaction begins."""
        columns = ", ".join(f"{identifier(column.name)} {column.type}" for column in self.columns)
        await target.execute(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {identifier(self.name)} ({columns}) ON COMMIT DELETE ROWS"
        )

    def stands_for(self, table: Table) -> Table:
        """Return the source table as statements in the target see it."""
        return Table(
            name=table.name,
            columns={column.name: column for column in self.columns},
            unique_keys=table.unique_keys,
            staged_in=f"{TEMPORARY_SCHEMA}.{self.name}",
        )


def original_statements(step: Consolidate, table: Table, dialect: Dialect) -> CopyStatements:
    """Return the statements that page through the table and count it in its own database."""
    mapping = CompiledMapping(
        dialect=dialect,
        source=table,
        target=table,
        key=tuple(table.column(name, used_by="consolidate.key") for name in step.key),
        columns=(),
        outputs=(),
        digested=(),
        inner=(),
        joins=(),
        problems=(),
        snapshots=(),
    )
    return CopyStatements(step, mapping, prefix="")


def without_filter(step: Consolidate) -> Consolidate:
    """Return the step for paging: the filter is SQL of the target's dialect, and looked at there."""
    return step.model_copy(update={"filter": None})


def count_statement(statements: CopyStatements) -> str:
    """Return the query for the number of rows up to the key that is bound."""
    return f"SELECT count(*) FROM {statements.mapping.source.relation} AS source WHERE {statements.up_to(1)}"


def every_statement(statements: CopyStatements, size: int) -> str:
    """Return the query for the first part of every size-th key, up to the key that is bound."""
    first = source_column(statements.mapping.key[0].name)
    numbered = (
        f"SELECT {first} AS k, row_number() OVER (ORDER BY {first}) AS n "
        f"FROM {statements.mapping.source.relation} AS source WHERE {statements.up_to(1)}"
    )
    as_text = statements.mapping.dialect.as_text("r.k")
    return f"SELECT DISTINCT {as_text} FROM ({numbered}) AS r WHERE r.n % {size} = 0"


def of_the_source(error: MigrationError) -> MigrationError:
    """Return the failure so that it says which of the two databases it is about."""
    if error.message.startswith("source:"):
        return error
    return MigrationError(
        error.reason, f"source: {error.message}", retry=error.retry, sql_state=error.sql_state, key=error.key
    )
