"""When to hold back between batches. A signal that is asked for and cannot be read holds back too."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytz

from shipkeeper.resources.migrationjob import DailyWindow, ThrottleRules
from shipkeeper.resources.schedule import milliseconds

from .catalog import quoted_name
from .database import Session
from .errors import server_message

_SEES_SESSIONS = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
_ACTIVE = """
SELECT count(*) FROM pg_stat_activity
WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_LAG = "SELECT coalesce(max(extract(epoch FROM replay_lag)), 0) * 1000 FROM pg_stat_replication"
_WAL = "SELECT CAST(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') AS bigint)"
# VACUUM, by hand or automatic, holds this lock; every user may read pg_locks.
_VACUUM = """
SELECT count(*) FROM pg_locks
WHERE relation = to_regclass($1) AND mode = 'ShareUpdateExclusiveLock' AND granted AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class Hold:
    """A reason to hold back, with the measured value and its bound."""

    reason: str
    message: str


class Throttle:
    """Reads the signals that the rules name."""

    def __init__(self, session: Session, rules: ThrottleRules, *, tables: Sequence[str]) -> None:
        self._session = session
        self._rules = rules
        self._tables = tables
        self._wal: tuple[float, int] | None = None

    @property
    def asks_the_database(self) -> bool:
        """Whether a rule needs a signal of PostgreSQL."""
        rules = self._rules
        bounds = (rules.max_replica_lag, rules.max_wal_bytes_per_second, rules.max_active_backends)
        return any(bound is not None for bound in bounds) or rules.avoid_autovacuum

    async def check(self) -> Hold | None:
        """Return the first reason to hold back, if there is one."""
        if self._rules.window is not None and not is_open(self._rules.window, now=datetime.now(UTC)):
            window = self._rules.window
            return Hold("Window", f"batches run from {window.start} to {window.end} {window.time_zone}")
        if not self.asks_the_database:
            return None
        try:
            async with self._session.statements():
                return await self._signal()
        except Exception as error:  # Whatever keeps a signal from being read, the answer is to hold back.
            return Hold("SignalUnreadable", server_message(error)[:1024])

    async def _signal(self) -> Hold | None:
        rules = self._rules
        needs_sessions = rules.max_active_backends is not None or rules.max_replica_lag is not None
        if needs_sessions and not await self._session.scalar(_SEES_SESSIONS):
            return Hold("SignalUnreadable", "the database user may not read other sessions: grant it pg_monitor")
        if rules.max_replica_lag is not None:
            bound, lag = milliseconds(rules.max_replica_lag), round(await self._session.scalar(_LAG))
            if lag > bound:
                return Hold("ReplicaLag", f"a replica lags {lag} ms, the bound is {bound} ms")
        if rules.max_active_backends is not None:
            active = await self._session.scalar(_ACTIVE)
            if active > rules.max_active_backends:
                return Hold(
                    "ActiveBackends", f"{active} other sessions are active, the bound is {rules.max_active_backends}"
                )
        if rules.avoid_autovacuum:
            for table in self._tables:
                if await self._session.scalar(_VACUUM, quoted_name(table)):
                    return Hold("Autovacuum", f"a vacuum works on {table}")
        return await self._wal_rate()

    async def _wal_rate(self) -> Hold | None:
        bound = self._rules.max_wal_bytes_per_second
        if bound is None:
            return None
        now, written = time.monotonic(), int(await self._session.scalar(_WAL))
        before, self._wal = self._wal, (now, written)
        if before is None or now <= before[0]:
            return None
        rate = round((written - before[1]) / (now - before[0]))
        return (
            Hold("WalRate", f"the server writes {rate} bytes of WAL a second, the bound is {bound}")
            if rate > bound
            else None
        )


def is_open(window: DailyWindow, *, now: datetime) -> bool:
    """Whether the window is open at that instant."""
    clock = now.astimezone(pytz.timezone(window.time_zone)).strftime("%H:%M")
    if window.start <= window.end:
        return window.start <= clock < window.end
    return clock >= window.start or clock < window.end
