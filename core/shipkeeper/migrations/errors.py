"""What can go wrong in a migration, as stable reasons: what failed, whether another try may help, and what to do.

Texts from drivers are reduced to the server's own message: SQLAlchemy's would show statements and parameters.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from shipkeeper.resources.migrationjob_status import LastError

Retry = Literal["Soon", "WhenMended", "Never"]


class MigrationError(Exception):
    """A failure with a stable reason. `retry` says what may help, as in LastError."""

    def __init__(
        self, reason: str, message: str, *, retry: Retry, sql_state: str | None = None, key: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry: Retry = retry
        self.sql_state = sql_state
        self.key = key


class Interrupted(Exception):  # noqa: N818 # Not a failure: the worker was asked to stop, and its place is kept.
    """The worker was asked to stop; everything done so far is committed."""


@dataclass(frozen=True)
class _Verdict:
    reason: str
    retry: Retry
    advice: str


_UNREACHABLE: Final = _Verdict("DatabaseUnreachable", "Soon", "check the host, the port and that the database is up")
_STATES: Final[Mapping[str, _Verdict]] = {
    "28P01": _Verdict("DatabaseAuthFailed", "WhenMended", "correct the user or the password in the database's Secret"),
    "28000": _Verdict("DatabaseAuthFailed", "WhenMended", "let this user connect, or correct it in the Secret"),
    "3D000": _Verdict("DatabaseMissing", "WhenMended", "create the database, or correct its name in the Secret"),
    "42P01": _Verdict("TableMissing", "WhenMended", "create the table, or correct its name in the step"),
    "42703": _Verdict("ColumnMissing", "WhenMended", "add the column, or correct its name in the step"),
    "42501": _Verdict("PermissionDenied", "WhenMended", "grant the database user this right"),
    "55P03": _Verdict("LockTimeout", "Soon", "another session holds a lock; see spec.locks"),
    "53300": _Verdict("TooManyConnections", "Soon", "the server has no free connection"),
    "53100": _Verdict("DiskFull", "WhenMended", "the server's disk is full: make room"),
    "40001": _Verdict("SerializationFailure", "Soon", "another transaction changed the same rows"),
    "40P01": _Verdict("DeadlockDetected", "Soon", "another transaction took the same locks in another order"),
    "08P01": _Verdict(
        "ConnectionPooler", "WhenMended", "connect to PostgreSQL directly, not through a pooler in transaction mode"
    ),
}
_CLASSES: Final[Mapping[str, _Verdict]] = {
    "08": _UNREACHABLE,
    "57": _Verdict("DatabaseUnreachable", "Soon", "the server is restarting or ended the session"),
    "53": _Verdict("DatabaseOverloaded", "Soon", "the server lacks a resource"),
}
_SQL_ERROR: Final = _Verdict("StatementFailed", "WhenMended", "correct the step, or the data it meets")
# What a row itself can cause: data exceptions and violated constraints.
_ROW_CLASSES: Final = ("22", "23")
_SQLITE_TABLE: Final = re.compile(r"no such table: (\S+)")
_SQLITE_COLUMN: Final = re.compile(r"no such column: (\S+)")


def sql_state(error: BaseException) -> str | None:
    """Return the SQLSTATE that the server gave, if it gave one."""
    for each in _chain(error):
        state = getattr(each, "sqlstate", None)
        if isinstance(state, str):
            return state
    return None


def is_row_error(error: BaseException) -> bool:
    """Whether a row's own values caused it, so that the same statement succeeds without that row."""
    state = sql_state(error)
    if state is not None:
        return state[:2] in _ROW_CLASSES
    names = {type(each).__name__ for each in _chain(error)}
    if "IntegrityError" in names:
        return True
    return "OperationalError" in names and "malformed JSON" in server_message(error)


def server_message(error: BaseException) -> str:
    """Return the driver's own words: no statement, no parameters."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    cause = original.__cause__ if getattr(original, "sqlstate", None) and original.__cause__ else original
    text = str(cause).strip().splitlines()
    # SQLAlchemy puts the driver's class before its words.
    return re.sub(r"^<class '[^']*'>: ", "", text[0]) if text else type(cause).__name__


def explain(error: BaseException) -> MigrationError:
    """Turn any failure of a database or of the network into one with a stable reason."""
    if isinstance(error, MigrationError):
        return error
    state = sql_state(error)
    if state is not None:
        verdict = _STATES.get(state) or _CLASSES.get(state[:2], _SQL_ERROR)
        return _explained(verdict, error, state)
    if isinstance(error, (ArgumentError, NoSuchModuleError)):
        return MigrationError(
            "DatabaseUrlInvalid",
            "the database URL cannot be read: write postgresql+asyncpg://user:password@host:5432/name",
            retry="WhenMended",
        )
    return _explain_connection(error)


def explain_at(error: BaseException, where: str) -> MigrationError | None:
    """Return the failure with the field of the spec in front; None for one that may pass by itself."""
    failure = explain(error)
    if failure.retry == "Soon":
        return None
    return MigrationError(
        failure.reason, f"{where}: {failure.message}", retry=failure.retry, sql_state=failure.sql_state
    )


def _explain_connection(error: BaseException) -> MigrationError:
    message = server_message(error)
    if _SQLITE_TABLE.search(message):
        return _explained(_STATES["42P01"], error, None)
    if _SQLITE_COLUMN.search(message):
        return _explained(_STATES["42703"], error, None)
    if "locked" in message or "busy" in message:
        return MigrationError("LockTimeout", f"{message}: another process writes to the file", retry="Soon")
    network = (OSError, TimeoutError, ssl.SSLError)
    names = {type(each).__name__ for each in _chain(error)}
    lost = {"InterfaceError", "ConnectionDoesNotExistError", "InternalClientError"}
    if any(isinstance(each, network) for each in _chain(error)) or names & lost:
        return _explained(_UNREACHABLE, error, None)
    if isinstance(error, DBAPIError):
        return _explained(_SQL_ERROR, error, None)
    return MigrationError("InternalError", f"{type(error).__name__}: {message}", retry="Soon")


def _explained(verdict: _Verdict, error: BaseException, state: str | None) -> MigrationError:
    return MigrationError(
        verdict.reason, f"{server_message(error)}: {verdict.advice}", retry=verdict.retry, sql_state=state
    )


def last_error(error: MigrationError, *, secrets: tuple[str, ...] = ()) -> LastError:
    """Return the failure for the report, with every known secret taken out of its text."""
    message = error.message
    for secret in secrets:
        message = message.replace(secret, "***")
    return LastError(
        reason=error.reason,
        message=message[:2048],
        sql_state=error.sql_state,
        key=error.key[:256] if error.key else None,
        retry=error.retry,
        at=datetime.now(UTC),
    )


def _chain(error: BaseException) -> tuple[BaseException, ...]:
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        pending += [getattr(each, "orig", None), each.__cause__, each.__context__]
    return tuple(seen)
