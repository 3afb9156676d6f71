"""What each step needs before it runs: its tables read, its mapping compiled, its statements made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from shipkeeper.resources.migrationsteps import Consolidate

from .catalog import Table, quoted_name, require_table
from .copying import Copier, CopyStatements
from .database import Session
from .dialect import Dialect
from .errors import MigrationError
from .ledger import Ledger, Owner
from .mapping import CompiledMapping, compile_mapping
from .postgresql import PostgresqlDialect
from .source import TEMPORARY_SCHEMA, Source, SourceTable
from .sqlite import SqliteDialect
from .staging import StagedCopier, StagedRows, StagedStatements, StagedVerifier, staged_mapping
from .verification import Verifier


def dialect_of(session: Session) -> Dialect:
    """Return the dialect that the session's database speaks."""
    return SqliteDialect() if session.is_sqlite else PostgresqlDialect()


@dataclass(frozen=True, kw_only=True)
class Consolidation:
    """A consolidation that is ready to run."""

    name: str
    step: Consolidate
    mapping: CompiledMapping
    statements: CopyStatements
    copier: Copier
    rows: StagedRows | None = None
    """The source's rows, if it is another database."""

    @property
    def original(self) -> CopyStatements:
        """The statements for the database that the source table stands in."""
        return self.statements if self.rows is None else self.rows.table.original

    def verifier(self, session: Session, *, owner: Owner, range_size: int) -> Verifier:
        """Return what compares source and target."""
        further = {
            "name": self.name,
            "step": self.step,
            "owner": owner,
            "statements": self.statements,
            "copier": self.copier,
            "range_size": range_size,
        }
        if self.rows is None:
            return Verifier(session, **further)  # type: ignore[arg-type]
        return StagedVerifier(session, rows=self.rows, **further)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that batches read or write."""
        return (self.step.target, self.step.source)


async def prepare_consolidation(
    session: Session, ledger: Ledger, *, name: str, step: Consolidate, started_at: datetime
) -> Consolidation:
    """Read the tables and compile the mapping, in the caller's transaction.

    Raises MigrationError naming what is missing: a table, a column, a unique key, a value for a column.
    """
    where = f"step {name}"
    prefix = ledger.owner.table_prefix(name)
    elsewhere = await _source_table(session, session.source, step, staging=f"{prefix}_source", used_by=where)
    source = await _table(session, step.source, where) if elsewhere is None else elsewhere.staged
    target = await _table(session, step.target, where)
    refuse_key(step.key, source, field="consolidate.key")
    for part in step.identity:
        target.column(part.column, used_by=f"{where}, identity")
    mapping = compile_mapping(
        step,
        dialect=dialect_of(session),
        source=source,
        target=target,
        lookups=tuple((await _lookups(session, step, where)).values()),
        prefix=prefix,
        start=shown_start(started_at),
    )
    if elsewhere is not None:
        rows = StagedRows(session, elsewhere)
        mapping = staged_mapping(mapping)
        staged = StagedStatements(step, mapping, prefix=prefix)
        staged_copier = StagedCopier(session, ledger, name=name, step=step, statements=staged, rows=rows)
        return Consolidation(name=name, step=step, mapping=mapping, statements=staged, copier=staged_copier, rows=rows)
    statements = CopyStatements(step, mapping, prefix=prefix)
    copier = Copier(session, ledger, name=name, step=step, statements=statements)
    return Consolidation(name=name, step=step, mapping=mapping, statements=statements, copier=copier)


async def _source_table(
    session: Session, source: Source | None, step: Consolidate, *, staging: str, used_by: str
) -> SourceTable | None:
    if source is None:
        return None
    if session.is_sqlite:
        raise MigrationError(
            "UnsupportedField",
            "spec.source needs PostgreSQL as spec.database: a SQLite file is no target for COPY",
            retry="Never",
        )
    # The source may have another form than when this session prepared the step before.
    await session.execute(f"DROP TABLE IF EXISTS {quoted_name(f'{TEMPORARY_SCHEMA}.{staging}')}")
    return await source.table(step, staging=staging, used_by=used_by)


def shown_start(started_at: datetime) -> str:
    """Return the instant at which a step began as generated SQL holds it."""
    return started_at.isoformat(sep=" ", timespec="microseconds")


async def _lookups(session: Session, step: Consolidate, where: str) -> Mapping[str, Table]:
    names = {mapping.lookup.table for mapping in step.columns if mapping.lookup is not None}
    return {name: await _table(session, name, f"{where}, lookup") for name in sorted(names)}


async def _table(session: Session, name: str, used_by: str) -> Table:
    return await require_table(session, name, sqlite=session.is_sqlite, used_by=used_by)


def refuse_key(key: Sequence[str], table: Table, *, field: str) -> None:
    """Raise MigrationError (KeyNotUnique) naming the field, unless the columns are unique and never null."""
    columns = [table.column(name, used_by=field) for name in key]
    nullable = [column.name for column in columns if column.nullable]
    if nullable:
        raise MigrationError(
            "KeyNotUnique",
            f"{field}: {', '.join(nullable)} of {table.name} may be null: name columns that never are",
            retry="WhenMended",
        )
    if not any(unique <= set(key) for unique in table.unique_keys):
        raise MigrationError(
            "KeyNotUnique",
            f"{field}: {', '.join(key)} is not unique in {table.name}: "
            "name its primary key, or create a unique index on it",
            retry="WhenMended",
        )
