"""What was read from a store, as plain data: decisions rest on these, and never on what was written."""

from dataclasses import dataclass
from datetime import datetime

from .failures import StoreFailure
from .verdict import LimitState


@dataclass(frozen=True, kw_only=True)
class PrimaryState:
    """What one primary answered."""

    address: str
    run_id: str
    library_version: str
    """Empty: the library is not there."""
    holds_policy: bool
    """Whether the policy's keys belong on this primary."""
    config_hash: str
    """Hash the server computed over the stored policy; empty: none there, or not its part."""
    may_evict: bool
    """Whether maxmemory-policy lets Redis drop counters that are in use."""


@dataclass(frozen=True, kw_only=True)
class StoreState:
    """What a whole store answered about one policy."""

    primaries: tuple[PrimaryState, ...]
    now: datetime
    """The store's own clock."""
    denied: dict[str, int]
    """Calls denied by each rule since the library was loaded."""
    would_deny: dict[str, int]
    """Calls that rules in Shadow mode would have denied since then."""
    refusal: StoreFailure | None
    """Why the policy's primary refuses writes, so that it counts nothing; None: it takes them."""
    state_lost_at: datetime | None
    """When counters were last lost, as the stored policy says."""
    busy_subjects: tuple[str, ...]
    """Subjects nearest to a limit, at most eight, by their calls since the last reading."""


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """The circuit breaker of one subject: the library's numbers for state and last trip."""

    state: int
    since: datetime | None
    open_until: datetime | None
    permits_in_use: int
    consecutive_failures: int
    last_trip: int


@dataclass(frozen=True, kw_only=True)
class SubjectUse:
    """What one subject has used under one policy."""

    subject: str
    limits: tuple[LimitState, ...]
    circuit: Circuit | None
