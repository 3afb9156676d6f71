"""Why a Redis gave no answer, as one stable word each, and never with what a URL or a reply may hold of secrets."""

import ssl
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from redis import exceptions


class StoreFailure(StrEnum):
    """A reason why the store could not judge or be read."""

    TIMEOUT = "Timeout"
    UNREACHABLE = "Unreachable"
    TLS_FAILED = "TlsFailed"
    AUTHENTICATION_FAILED = "AuthenticationFailed"
    PERMISSION_DENIED = "PermissionDenied"
    OUT_OF_MEMORY = "OutOfMemory"
    READ_ONLY = "ReadOnly"
    LOADING = "Loading"
    CLUSTER_DOWN = "ClusterDown"
    MASTER_UNKNOWN = "MasterUnknown"
    MASTER_DOWN = "MasterDown"
    BUSY = "Busy"
    PERSISTENCE_FAILED = "PersistenceFailed"
    TOO_FEW_REPLICAS = "TooFewReplicas"
    TOO_MANY_CONNECTIONS = "TooManyConnections"
    LIBRARY_MISSING = "LibraryMissing"
    CONFIG_MISSING = "ConfigMissing"
    CONFIG_DAMAGED = "ConfigDamaged"
    FUNCTIONS_UNSUPPORTED = "FunctionsUnsupported"
    URL_INVALID = "UrlInvalid"
    UNEXPECTED_REPLY = "UnexpectedReply"


MEANINGS: Final[dict[StoreFailure, str]] = {
    StoreFailure.TIMEOUT: "Redis did not answer in time",
    StoreFailure.UNREACHABLE: "no connection to Redis; check the host, the port and network policies",
    StoreFailure.TLS_FAILED: "the TLS handshake with Redis failed; check the scheme (rediss://) and the certificates",
    StoreFailure.AUTHENTICATION_FAILED: "Redis refused the user or the password in the URL",
    StoreFailure.PERMISSION_DENIED: "the Redis user lacks a permission; docs/limits.md lists the ACL rules it needs",
    StoreFailure.OUT_OF_MEMORY: "Redis is at maxmemory and refuses writes",
    StoreFailure.READ_ONLY: "the server is a read-only replica; the URL must lead to the primary",
    StoreFailure.LOADING: "Redis is still loading its data",
    StoreFailure.CLUSTER_DOWN: "the Redis Cluster is down or does not cover the policy's slot",
    StoreFailure.MASTER_UNKNOWN: "the sentinels know no reachable master by that name; check store.sentinelMaster",
    StoreFailure.MASTER_DOWN: "the replica has lost its master",
    StoreFailure.BUSY: "Redis is busy with a script",
    StoreFailure.PERSISTENCE_FAILED: "Redis cannot save to disk and refuses writes",
    StoreFailure.TOO_FEW_REPLICAS: "Redis has fewer replicas than min-replicas-to-write and refuses writes",
    StoreFailure.TOO_MANY_CONNECTIONS: "Redis refuses further connections (maxclients)",
    StoreFailure.LIBRARY_MISSING: "the function library is not loaded",
    StoreFailure.CONFIG_MISSING: "the policy is not in the store",
    StoreFailure.CONFIG_DAMAGED: "the policy in the store does not match its hash",
    StoreFailure.FUNCTIONS_UNSUPPORTED: "this server has no functions; Redis 7 or newer (or Valkey) is needed",
    StoreFailure.URL_INVALID: "the URL is not of the form redis://user:password@host:port/database",
    StoreFailure.UNEXPECTED_REPLY: "Redis answered with an error that is not known here",
}

# Replies by their text, because they carry no code of their own (or one that stands inside a script's error).
_TEXTS: Final[tuple[tuple[str, StoreFailure], ...]] = (
    ("Function not found", StoreFailure.LIBRARY_MISSING),
    ("SKNOCONFIG", StoreFailure.CONFIG_MISSING),
    ("SKCONFIG", StoreFailure.CONFIG_DAMAGED),
    ("WRONGPASS", StoreFailure.AUTHENTICATION_FAILED),
    ("NOAUTH", StoreFailure.AUTHENTICATION_FAILED),
    ("invalid password", StoreFailure.AUTHENTICATION_FAILED),
    ("without any password configured", StoreFailure.AUTHENTICATION_FAILED),
    ("NOPERM", StoreFailure.PERMISSION_DENIED),
    ("ACL failure", StoreFailure.PERMISSION_DENIED),
    ("can't run this command", StoreFailure.PERMISSION_DENIED),
    ("can't access at least one of the keys", StoreFailure.PERMISSION_DENIED),
    ("OOM", StoreFailure.OUT_OF_MEMORY),
    ("READONLY", StoreFailure.READ_ONLY),
    ("LOADING", StoreFailure.LOADING),
    ("CLUSTERDOWN", StoreFailure.CLUSTER_DOWN),
    ("MASTERDOWN", StoreFailure.MASTER_DOWN),
    ("BUSY", StoreFailure.BUSY),
    ("MISCONF", StoreFailure.PERSISTENCE_FAILED),
    ("NOREPLICAS", StoreFailure.TOO_FEW_REPLICAS),
    ("max number of clients", StoreFailure.TOO_MANY_CONNECTIONS),
    ("unknown command", StoreFailure.FUNCTIONS_UNSUPPORTED),
)

_TYPES: Final[tuple[tuple[type[BaseException], StoreFailure], ...]] = (
    (exceptions.AuthenticationError, StoreFailure.AUTHENTICATION_FAILED),
    (exceptions.NoPermissionError, StoreFailure.PERMISSION_DENIED),
    (exceptions.ReadOnlyError, StoreFailure.READ_ONLY),
    (exceptions.BusyLoadingError, StoreFailure.LOADING),
    (exceptions.OutOfMemoryError, StoreFailure.OUT_OF_MEMORY),
    (exceptions.MasterDownError, StoreFailure.MASTER_DOWN),  # To the client library it is a kind of ClusterDownError.
    (exceptions.ClusterDownError, StoreFailure.CLUSTER_DOWN),
    (exceptions.TimeoutError, StoreFailure.TIMEOUT),
    (TimeoutError, StoreFailure.TIMEOUT),
    (ssl.SSLError, StoreFailure.TLS_FAILED),
    (FileNotFoundError, StoreFailure.TLS_FAILED),  # The only files are the certificates that a URL may name.
)


class StoreError(Exception):
    """The store could not be used. The text is ours alone: it names the reason, never what the server or a URL said."""

    def __init__(self, failure: StoreFailure, where: str = "") -> None:
        super().__init__(f"{MEANINGS[failure]}{f' ({where})' if where else ''}")
        self.failure = failure
        self.where = where


def classify(error: BaseException) -> StoreFailure:
    """Return the reason behind an exception of the Redis client."""
    chain = list(_causes(error))
    checks: tuple[Callable[[BaseException], StoreFailure | None], ...] = (_by_type, _by_text)
    for check in checks:
        for link in chain:
            failure = check(link)
            if failure is not None:
                return failure
    if any(type(link).__name__ == "MasterNotFoundError" for link in chain):
        return StoreFailure.MASTER_UNKNOWN
    if any(isinstance(link, exceptions.RedisClusterException) for link in chain):
        return StoreFailure.CLUSTER_DOWN
    if any(isinstance(link, (exceptions.ConnectionError, OSError)) for link in chain):
        return StoreFailure.UNREACHABLE
    return StoreFailure.UNEXPECTED_REPLY


def _causes(error: BaseException | None) -> "list[BaseException]":
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _by_type(error: BaseException) -> StoreFailure | None:
    return next((failure for kind, failure in _TYPES if isinstance(error, kind)), None)


def _by_text(error: BaseException) -> StoreFailure | None:
    if not isinstance(error, exceptions.RedisError):
        return None
    text = str(error)
    return next((failure for part, failure in _TEXTS if part in text), None)
