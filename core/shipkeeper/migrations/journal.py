"""What a migration did besides copying: rejected rows tried again, ranges repaired, rows removed, tables retired.

An entry stands in the database and is written in the transaction of the work it tells of, as the ledger's steps are.
A cursor is moved from where it stood or not at all, so that no two workers can do the same part.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import sqlalchemy as sa

from .database import Session
from .ledger import METADATA, Owner, utc_now

Action = Literal["Retry", "Repair", "Rollback", "Retire"]

ACTIONS: Final = sa.Table(
    "shipkeeper_migration_actions",
    METADATA,
    sa.Column("migration", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("step", sa.Text, primary_key=True),
    sa.Column("action", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False, default=0),
    sa.Column("cursor", sa.Text),
    sa.Column("rows_done", sa.BigInteger, nullable=False, default=0),
    sa.Column("details", sa.Text),
    sa.Column("started_at", sa.DateTime, nullable=False),
    sa.Column("finished_at", sa.DateTime),
)


@dataclass(frozen=True, kw_only=True)
class ActionRecord:
    """An action as the journal has it."""

    step: str
    action: str
    number: int
    """Which one it is, where the spec counts them (rejects.retry)."""
    cursor: str | None
    rows_done: int
    details: str | None
    started_at: datetime
    finished_at: datetime | None

    def is_finished(self, number: int) -> bool:
        """Whether it was finished for that number."""
        return self.number >= number and self.finished_at is not None


class Journal:
    """The actions of one revision of one migration."""

    def __init__(self, session: Session, owner: Owner) -> None:
        self._session = session
        self._owner = owner
        self._is_there = False

    async def entries(self) -> dict[tuple[str, str], ActionRecord]:
        """Return the actions by step and kind; none where the table is missing, as it is before a run."""
        if not self._is_there:
            connection = self._session.connection
            self._is_there = bool(await connection.run_sync(lambda sync: sa.inspect(sync).has_table(ACTIONS.name)))
            if not self._is_there:
                return {}
        result = await self._session.connection.execute(sa.select(ACTIONS).where(*self._mine()))
        return {(row.step, row.action): _record(row) for row in result}

    async def entry(self, step: str, action: Action) -> ActionRecord | None:
        """Return one action, if it was begun."""
        return (await self.entries()).get((step, action))

    async def begin(
        self, step: str, action: Action, *, number: int = 0, at: datetime | None = None, finished: bool = False
    ) -> None:
        """Enter an action, in the place of the one before it. `at` is when it began, if not now."""
        await self._session.connection.execute(sa.delete(ACTIONS).where(*self._mine(), *_is(step, action)))
        began = at or utc_now()
        values: dict[str, Any] = {
            "migration": self._owner.migration,
            "revision": self._owner.revision,
            "step": step,
            "action": action,
            "number": number,
            "started_at": began,
            "finished_at": began if finished else None,
        }
        await self._session.connection.execute(sa.insert(ACTIONS).values(values))

    async def advance(self, record: ActionRecord, *, cursor: str, rows: int) -> bool:
        """Move the cursor from where the record says it stands. False: somebody else moved it before."""
        stands = ACTIONS.c.cursor.is_(None) if record.cursor is None else ACTIONS.c.cursor == record.cursor
        result = await self._session.connection.execute(
            sa.update(ACTIONS)
            .where(*self._mine(), *_is(record.step, record.action), ACTIONS.c.number == record.number, stands)
            .values(cursor=cursor, rows_done=ACTIONS.c.rows_done + rows)
        )
        return result.rowcount == 1

    async def rewind(self, step: str, action: Action) -> None:
        """Let an action begin from the start again; the rows that it counted stay counted."""
        await self._session.connection.execute(
            sa.update(ACTIONS).where(*self._mine(), *_is(step, action)).values(cursor=None)
        )

    async def add(self, record: ActionRecord, *, rows: int, details: str) -> None:
        """Count rows of an action that has no cursor."""
        await self._session.connection.execute(
            sa.update(ACTIONS)
            .where(*self._mine(), *_is(record.step, record.action))
            .values(rows_done=ACTIONS.c.rows_done + rows, details=details)
        )

    async def finish(self, step: str, action: Action) -> None:
        """Mark an action finished."""
        await self._session.connection.execute(
            sa.update(ACTIONS).where(*self._mine(), *_is(step, action)).values(finished_at=utc_now())
        )

    async def forget(self) -> None:
        """Take all entries away: what they tell of is undone."""
        await self._session.connection.execute(sa.delete(ACTIONS).where(*self._mine()))

    def _mine(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (ACTIONS.c.migration == self._owner.migration, ACTIONS.c.revision == self._owner.revision)


def _is(step: str, action: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (ACTIONS.c.step == step, ACTIONS.c.action == action)


def _record(row: Any) -> ActionRecord:
    return ActionRecord(
        step=row.step,
        action=row.action,
        number=row.number,
        cursor=row.cursor,
        rows_done=row.rows_done,
        details=row.details,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
