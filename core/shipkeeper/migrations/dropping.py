"""Dropping a retired table when its retention has passed.

The retention counts by the database's clock, from the retirement that the ledger holds. No worker waits for it: it
ends, says until when the table is kept, and a later run drops it.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from shipkeeper.resources.base import parse_duration
from shipkeeper.resources.migrationjob import Locks, MigrationJobSpec
from shipkeeper.resources.migrationsteps import Consolidate, Retire
from shipkeeper.resources.schedule import milliseconds

from .catalog import quoted_name, read_table
from .database import Session
from .errors import MigrationError
from .journal import ActionRecord
from .ledger import StepRecord
from .references import references_to
from .retiring import retired_table

_VIEWS: Final = """
SELECT DISTINCT CAST(r.ev_class AS regclass)::text
FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
  AND d.refobjid = to_regclass($1) AND r.ev_class <> d.refobjid
"""
_SQLITE_TEXTS: Final = "SELECT type, name, sql FROM sqlite_master WHERE type IN ('view', 'trigger') AND tbl_name <> ?1"


async def database_now(session: Session) -> datetime:
    """Return the database's time: UTC, without zone, as the ledger keeps it."""
    if session.is_sqlite:
        return datetime.fromisoformat(str(await session.scalar("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")))
    now: datetime = await session.scalar("SELECT clock_timestamp()")
    return now.astimezone(UTC).replace(tzinfo=None)


def due_at(retire: Retire, retired: ActionRecord) -> datetime:
    """Return when the table may be dropped."""
    assert retire.retention is not None  # noqa: S101 # The model requires it for this action.
    return retired.started_at + parse_duration(retire.retention)


def retained_until(
    spec: MigrationJobSpec, records: Mapping[str, StepRecord], actions: Mapping[tuple[str, str], ActionRecord]
) -> datetime | None:
    """Return when the next table is dropped, if drops are all that is left to do."""
    due = []
    for step in spec.steps:
        record = records.get(step.name)
        if record is not None and record.done:
            continue
        retired = actions.get((step.name, "Retire"))
        if step.retire is None or step.retire.action != "Drop" or retired is None:
            return None
        due.append(due_at(step.retire, retired))
    return min(due, default=None)


def drop_sql(retire: Retire) -> str:
    """Return the statement that drops the retired table."""
    return f"DROP TABLE {quoted_name(retired_table(retire.table))}"


async def drop(session: Session, retire: Retire, *, copied: StepRecord, work: Consolidate, locks: Locks) -> None:
    """Drop the retired table in one transaction, under its lock. One that is gone already is as it should be.

    Raises MigrationError (TableReferenced) naming what references it, (SourceHasNewRows) where rows came or went.
    """
    table = retired_table(retire.table)
    async with session.transaction():
        if await read_table(session, table, sqlite=session.is_sqlite) is None:
            return
    async with session.transaction():
        if not session.is_sqlite:
            # Neither statement takes the transaction's snapshot, so what follows sees all that came before the lock.
            await session.execute(f"SET LOCAL lock_timeout = {milliseconds(locks.table_timeout)}")
            await session.execute(f"LOCK TABLE {quoted_name(table)} IN ACCESS EXCLUSIVE MODE")
        await _refuse_referenced(session, table)
        wanted = f" WHERE ({work.filter})" if work.filter is not None else ""
        rows = int(await session.scalar(f"SELECT count(*) FROM {quoted_name(table)} AS source{wanted}"))
        if rows != copied.rows_done:
            raise MigrationError(
                "SourceHasNewRows",
                f"{table} has {rows} rows, of which {copied.rows_done} are accounted for, so it is not dropped: rename "
                f"it back to {retire.table} and raise spec.revision to copy the rest",
                retry="Never",
            )
        await session.execute(drop_sql(retire))


async def _refuse_referenced(session: Session, table: str) -> None:
    names = [f"foreign key of {each}" for each in await references_to(session, table) if not each.is_own]
    if session.is_sqlite:
        word = re.compile(rf"\b{re.escape(table)}\b", re.IGNORECASE)
        texts = await session.rows(_SQLITE_TEXTS, table)
        names += [f"{kind} {name}" for kind, name, sql in texts if word.search(sql or "")]
    else:
        names += [f"view {name}" for (name,) in await session.rows(_VIEWS, quoted_name(table))]
    if names:
        raise MigrationError(
            "TableReferenced",
            f"{table} is not dropped, because others reference it: {', '.join(sorted(names))}. Remove these first",
            retry="WhenMended",
        )
