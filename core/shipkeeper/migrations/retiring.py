"""Retiring a table: a rename, only after its content was verified and while no row of it is unaccounted for."""

from collections.abc import Awaitable, Callable

from shipkeeper.resources.migrationjob import Locks
from shipkeeper.resources.migrationsteps import Retire
from shipkeeper.resources.schedule import milliseconds

from .catalog import quoted_name, read_table
from .copying import CopyStatements
from .database import Session
from .dialect import identifier
from .errors import MigrationError
from .ledger import StepRecord


def retired_name(table: str) -> str:
    """Return the name that a retired table has."""
    return f"{table.rpartition('.')[2]}_retired"


def retired_table(table: str) -> str:
    """Return the retired table's name, with its schema where the spec gives one."""
    schema, _, _ = table.rpartition(".")
    return f"{schema}.{retired_name(table)}" if schema else retired_name(table)


def rename_sql(retire: Retire) -> str:
    """Return the statement that takes the table out of use."""
    return f"ALTER TABLE {quoted_name(retire.table)} RENAME TO {identifier(retired_name(retire.table))}"


async def is_retired(session: Session, retire: Retire) -> bool:
    """Whether the table has its new name already."""
    new = retired_table(retire.table)
    async with session.transaction():
        old_there = await read_table(session, retire.table, sqlite=session.is_sqlite) is not None
        return not old_there and await read_table(session, new, sqlite=session.is_sqlite) is not None


async def refuse_retired(session: Session, table: str, *, wanted_for: str) -> None:
    """Raise MigrationError (SourceRetired) if the table was renamed by a retirement. In the caller's transaction."""
    new = retired_table(table)
    if await read_table(session, table, sqlite=session.is_sqlite) is not None:
        return
    if await read_table(session, new, sqlite=session.is_sqlite) is not None:
        raise MigrationError(
            "SourceRetired",
            f"{wanted_for} needs {table}, which was retired: rename {new} back to {table} first",
            retry="WhenMended",
        )


async def rename(
    session: Session,
    retire: Retire,
    *,
    copied: StepRecord,
    statements: CopyStatements,
    locks: Locks,
    note: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Rename the table in one transaction that also counts its rows once more, under the lock, and awaits any `note`.

    Raises MigrationError (SourceHasNewRows) where rows came or went after they were copied and verified.
    """
    async with session.transaction():
        if not session.is_sqlite:
            # Neither statement takes the transaction's snapshot, so the count below sees all that came before the lock.
            await session.execute(f"SET LOCAL lock_timeout = {milliseconds(locks.table_timeout)}")
            await session.execute(f"LOCK TABLE {quoted_name(retire.table)} IN ACCESS EXCLUSIVE MODE")
        rows = int(await session.scalar(statements.total()))
        if rows != copied.rows_done:
            raise MigrationError(
                "SourceHasNewRows",
                f"{retire.table} has {rows} rows, of which {copied.rows_done} are accounted for: stop what still "
                "writes to it, then raise spec.revision to copy the rest",
                retry="Never",
            )
        await session.execute(rename_sql(retire))
        if note is not None:
            await note()
