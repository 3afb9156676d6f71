"""The ledger: what a migration has done, kept in the database it changes and written in the batch's own transaction.

Status and reports are copies of it. A row of `steps` is the checkpoint: whoever commits a batch moves the cursor from
where it stood when the batch began, so that two workers can never both commit the same rows, whatever their locks.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.schema import CreateTable

from shipkeeper.resources.migrationjob_status import StepVerification

from .database import Session
from .errors import MigrationError

METADATA: Final = sa.MetaData()
METADATA_LOCK: Final = "shipkeeper ledger"
REJECTS_TABLE: Final = "shipkeeper_migration_rejects"

RUNS: Final = sa.Table(
    "shipkeeper_migrations",
    METADATA,
    sa.Column("migration", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("work_hash", sa.Text, nullable=False),
    sa.Column("plan", sa.Text),
    sa.Column("started_at", sa.DateTime, nullable=False),
    sa.Column("finished_at", sa.DateTime),
)

STEPS: Final = sa.Table(
    "shipkeeper_migration_steps",
    METADATA,
    sa.Column("migration", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("done", sa.Boolean, nullable=False, default=False),
    sa.Column("cursor", sa.Text),
    sa.Column("upper", sa.Text),
    sa.Column("rows_total", sa.BigInteger, nullable=False, default=0),
    sa.Column("rows_copied", sa.BigInteger, nullable=False, default=0),
    sa.Column("rows_existing", sa.BigInteger, nullable=False, default=0),
    sa.Column("rows_rejected", sa.BigInteger, nullable=False, default=0),
    sa.Column("existing_known", sa.BigInteger, nullable=False, default=0),
    sa.Column("batches", sa.BigInteger, nullable=False, default=0),
    sa.Column("batch_milliseconds", sa.BigInteger, nullable=False, default=0),
    sa.Column("verification", sa.Text),
    sa.Column("started_at", sa.DateTime, nullable=False),
    sa.Column("finished_at", sa.DateTime),
)

REJECTS: Final = sa.Table(
    REJECTS_TABLE,
    METADATA,
    sa.Column("migration", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("row_key", sa.Text, primary_key=True),
    sa.Column("row_values", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("rejected_at", sa.DateTime, nullable=False),
)

Key = tuple[str, ...]
"""A key as texts, one for each key column."""


@dataclass(frozen=True)
class Owner:
    """Whose entries: the migration (namespace/name), the revision of its work."""

    migration: str
    revision: int

    def table_prefix(self, step: str) -> str:
        """Return the beginning of the names of a step's own tables."""
        digest = hashlib.sha256(f"{self.migration}\n{self.revision}\n{step}".encode()).hexdigest()[:10]
        return f"shipkeeper_{digest}"


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step as the ledger has it."""

    step: str
    done: bool
    cursor: Key | None
    upper: Key | None
    rows_total: int
    rows_copied: int
    rows_existing: int
    rows_rejected: int
    existing_known: int
    batches: int
    batch_milliseconds: int
    verification: str | None
    started_at: datetime
    finished_at: datetime | None

    @property
    def is_proven(self) -> bool:
        """Whether the step is done and its last verification found no difference."""
        found = self.verification
        return self.done and found is not None and StepVerification.model_validate_json(found).result == "Equal"

    @property
    def rows_done(self) -> int:
        """Rows accounted for."""
        return self.rows_copied + self.rows_existing + self.rows_rejected


@dataclass(frozen=True, kw_only=True)
class BatchCounts:
    """What one batch did with the source rows of its range."""

    copied: int = 0
    existing: int = 0
    rejected: int = 0


def utc_now() -> datetime:
    """Return the time as the ledger keeps it: UTC, without zone, whole microseconds."""
    return datetime.now(UTC).replace(tzinfo=None)


def encode_key(key: Sequence[Any]) -> str:
    """Return a key as one text, for the ledger and for people."""
    return json.dumps([str(part) for part in key], ensure_ascii=False)


def decode_key(text: str | None) -> Key | None:
    """Return the key that a text stands for."""
    return None if text is None else tuple(json.loads(text))


class Ledger:
    """The entries of one revision of one migration."""

    def __init__(self, session: Session, owner: Owner) -> None:
        self._session = session
        self.owner = owner

    async def create_tables(self) -> None:
        """Create the ledger's tables where they are missing."""
        if not self._session.is_sqlite:
            # Two sessions that create the same table at once collide in PostgreSQL's catalogue, IF NOT EXISTS or not.
            await self._session.rows(f"SELECT pg_advisory_xact_lock(hashtextextended('{METADATA_LOCK}', 0))")
        for table in METADATA.sorted_tables:
            await self._session.connection.execute(CreateTable(table, if_not_exists=True))

    async def exists(self) -> bool:
        """Whether the ledger's tables are there."""
        return bool(
            await self._session.connection.run_sync(lambda connection: sa.inspect(connection).has_table(RUNS.name))
        )

    async def run(self) -> Any:
        """Return the entry of this revision."""
        result = await self._session.connection.execute(sa.select(RUNS).where(*self._mine(RUNS)))
        return result.first()

    async def begin_run(self, work_hash: str) -> None:
        """Enter this revision.

        Raises MigrationError (WorkChanged) if it is entered with other work.
        """
        entry = await self.run()
        if entry is None:
            values = self._identity() | {"work_hash": work_hash, "started_at": utc_now()}
            await self._session.connection.execute(self._insert(RUNS).values(values).on_conflict_do_nothing())
            entry = await self.run()
        if entry is not None and entry.work_hash != work_hash:
            raise MigrationError(
                "WorkChanged",
                f"revision {self.owner.revision} of {self.owner.migration} was begun with other work: "
                "raise spec.revision to run the changed work as a new run",
                retry="Never",
            )

    async def finish_run(self) -> datetime:
        """Mark this revision complete, once, and return when it was."""
        finished = utc_now()
        await self._session.connection.execute(
            sa.update(RUNS).where(*self._mine(RUNS), RUNS.c.finished_at.is_(None)).values(finished_at=finished)
        )
        entry = await self.run()
        return entry.finished_at if entry is not None and entry.finished_at is not None else finished

    async def forget_run(self) -> None:
        """Take the entries of this revision away: what it did is undone, and it may begin anew."""
        for table in (REJECTS, STEPS, RUNS):
            await self._session.connection.execute(sa.delete(table).where(*self._mine(table)))

    async def keep_plan(self, plan: str) -> None:
        """Keep the plan that the work follows."""
        await self._session.connection.execute(sa.update(RUNS).where(*self._mine(RUNS)).values(plan=plan))

    async def steps(self) -> dict[str, StepRecord]:
        """Return the steps that have begun."""
        result = await self._session.connection.execute(sa.select(STEPS).where(*self._mine(STEPS)))
        return {row.step: _record(row) for row in result}

    async def step(self, name: str) -> StepRecord | None:
        """Return one step, if it has begun."""
        result = await self._session.connection.execute(
            sa.select(STEPS).where(*self._mine(STEPS), STEPS.c.step == name)
        )
        row = result.first()
        return _record(row) if row is not None else None

    async def begin_step(
        self, name: str, *, upper: Key | None, rows_total: int, existing_known: int, started_at: datetime
    ) -> None:
        """Enter a step."""
        values = self._identity() | {
            "step": name,
            "done": False,
            "upper": encode_key(upper) if upper is not None else None,
            "rows_total": rows_total,
            "existing_known": existing_known,
            "started_at": started_at,
        }
        await self._session.connection.execute(sa.insert(STEPS).values(values))

    async def advance(self, record: StepRecord, *, cursor: Key, counts: BatchCounts, milliseconds: int) -> bool:
        """Move the step's cursor from where the record says it stands. False: somebody else moved it before."""
        before = encode_key(record.cursor) if record.cursor is not None else None
        stands = STEPS.c.cursor.is_(None) if before is None else STEPS.c.cursor == before
        result = await self._session.connection.execute(
            sa.update(STEPS)
            .where(*self._mine(STEPS), STEPS.c.step == record.step, stands)
            .values(
                cursor=encode_key(cursor),
                rows_copied=STEPS.c.rows_copied + counts.copied,
                rows_existing=STEPS.c.rows_existing + counts.existing,
                rows_rejected=STEPS.c.rows_rejected + counts.rejected,
                batches=STEPS.c.batches + 1,
                batch_milliseconds=STEPS.c.batch_milliseconds + milliseconds,
            )
        )
        return result.rowcount == 1

    async def finish_step(self, name: str) -> bool:
        """Mark a step done. False: it was done already."""
        values = {"done": True, "finished_at": utc_now()}
        result = await self._session.connection.execute(
            sa.update(STEPS).where(*self._mine(STEPS), STEPS.c.step == name, STEPS.c.done.is_(False)).values(values)
        )
        return result.rowcount == 1

    async def rewind_step(self, record: StepRecord, *, further: int) -> None:
        """Let a step begin at its first key again, for so many further rows; what it did so far stays counted."""
        values = {"cursor": None, "rows_total": record.rows_done + further}
        await self._session.connection.execute(
            sa.update(STEPS).where(*self._mine(STEPS), STEPS.c.step == record.step).values(values)
        )

    async def reopen_step(self, record: StepRecord) -> None:
        """Let a step begin at its first key again with the rows that it rejected, and forget that it rejected them."""
        await self._session.connection.execute(
            sa.delete(REJECTS).where(*self._mine(REJECTS), REJECTS.c.step == record.step)
        )
        values = {"cursor": None, "rows_rejected": 0, "done": False, "finished_at": None}
        await self._session.connection.execute(
            sa.update(STEPS).where(*self._mine(STEPS), STEPS.c.step == record.step).values(values)
        )

    async def settle_step(self, record: StepRecord) -> None:
        """Account for the rows that others set, removed or added while the step ran, so that the counts add up."""
        written = record.rows_copied + record.rows_rejected
        total = max(record.rows_total, written)
        values = {"rows_total": total, "rows_existing": total - written}
        await self._session.connection.execute(
            sa.update(STEPS).where(*self._mine(STEPS), STEPS.c.step == record.step).values(values)
        )

    async def keep_verification(self, name: str, verification: str) -> None:
        """Keep what a comparison found."""
        await self._session.connection.execute(
            sa.update(STEPS).where(*self._mine(STEPS), STEPS.c.step == name).values(verification=verification)
        )

    async def reject(self, step: str, *, key: str, values: str, reason: str) -> None:
        """Keep one row that could not be converted."""
        row = self._identity() | {
            "step": step,
            "row_key": key,
            "row_values": values,
            "reason": reason,
            "rejected_at": utc_now(),
        }
        await self._session.connection.execute(sa.insert(REJECTS).values(row))

    async def rejects(self, *, limit: int) -> Sequence[Any]:
        """Return the first rejected rows."""
        result = await self._session.connection.execute(
            sa.select(REJECTS.c.step, REJECTS.c.row_key, REJECTS.c.reason)
            .where(*self._mine(REJECTS))
            .order_by(REJECTS.c.step, REJECTS.c.rejected_at, REJECTS.c.row_key)
            .limit(limit)
        )
        return result.fetchall()

    async def rejected_keys(self, step: str, *, after: str | None, limit: int) -> Sequence[str]:
        """Return the next rejected keys of a step, in the order of their texts."""
        further = () if after is None else (REJECTS.c.row_key > after,)
        result = await self._session.connection.execute(
            sa.select(REJECTS.c.row_key)
            .where(*self._mine(REJECTS), REJECTS.c.step == step, *further)
            .order_by(REJECTS.c.row_key)
            .limit(limit)
        )
        return [str(row.row_key) for row in result]

    async def settle_rejects(self, step: str, *, keys: Sequence[str], copied: int, existing: int) -> None:
        """Take rows out of the reject table: copied, already there, and the rest gone from the source."""
        if not keys:
            return
        gone = len(keys) - copied - existing
        await self._session.connection.execute(
            sa.delete(REJECTS).where(*self._mine(REJECTS), REJECTS.c.step == step, REJECTS.c.row_key.in_(keys))
        )
        await self._session.connection.execute(
            sa.update(STEPS)
            .where(*self._mine(STEPS), STEPS.c.step == step)
            .values(
                rows_total=STEPS.c.rows_total - gone,
                rows_copied=STEPS.c.rows_copied + copied,
                rows_existing=STEPS.c.rows_existing + existing,
                rows_rejected=STEPS.c.rows_rejected - len(keys),
                existing_known=STEPS.c.existing_known + existing,
            )
        )

    async def explain_reject(self, step: str, *, key: str, values: str, reason: str) -> None:
        """Say why a row is still rejected, and what it holds now."""
        await self._session.connection.execute(
            sa.update(REJECTS)
            .where(*self._mine(REJECTS), REJECTS.c.step == step, REJECTS.c.row_key == key)
            .values(row_values=values, reason=reason)
        )

    def _mine(self, table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
        return (table.c.migration == self.owner.migration, table.c.revision == self.owner.revision)

    def _identity(self) -> dict[str, Any]:
        return {"migration": self.owner.migration, "revision": self.owner.revision}

    def _insert(self, table: sa.Table) -> Any:
        sqlite = self._session.connection.dialect.name == "sqlite"
        return sqlite_insert(table) if sqlite else postgresql_insert(table)


def _record(row: Any) -> StepRecord:
    return StepRecord(
        step=row.step,
        done=row.done,
        cursor=decode_key(row.cursor),
        upper=decode_key(row.upper),
        rows_total=row.rows_total,
        rows_copied=row.rows_copied,
        rows_existing=row.rows_existing,
        rows_rejected=row.rows_rejected,
        existing_known=row.existing_known,
        batches=row.batches,
        batch_milliseconds=row.batch_milliseconds,
        verification=row.verification,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
