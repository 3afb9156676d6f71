"""What a caller gets: a verdict, the limits behind it, and the errors that a wrong call or a refusal raises."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

BreakerName = Literal["Closed", "Open", "HalfOpen", "ForcedOpen", "Disabled"]
_BREAKERS: Final[tuple[BreakerName, ...]] = ("Closed", "Open", "HalfOpen", "ForcedOpen", "Disabled")
_NEVER: Final = -1
# Numbers of a reply before its policies, for each policy before its limits, and for each limit: docs/limits.md.
_HEAD, _POLICY, _LIMIT = 11, 3, 4


def instant(milliseconds: int) -> datetime:
    """Return the instant that Redis writes as milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit after the decision."""

    name: str
    amount: int
    remaining: int
    resets_at: datetime | None
    """When all units are back; None when none is used, or when time does not bring them back (an execution's limit)."""
    policy: str
    """The policy it belongs to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one call. Everything but `allowed` and the reasons is read from the reply only when asked for."""

    allowed: bool
    rule: str
    """The binding rule: the one that frees last. A limit's name, spacing, activeHours, circuitBreaker, maxSubjects,
    config or store; empty when allowed by the store."""
    reason: str
    """Why, in one word: LimitReached, CostAboveLimit, Spacing, OutsideActiveHours, CircuitOpen, ProbeUnderWay,
    CircuitForcedOpen, TooManySubjects, TooManyReservations, StateLost, ConfigExpired, StoreUnavailable,
    LocalBudgetSpent; empty when the store allowed."""
    store_failure: str = ""
    """Why the store gave no verdict (see StoreFailure); empty when it did."""
    subject: tuple[str, ...] = ()
    """The subject that was judged, for each policy."""
    policies: tuple[str, ...] = ()
    """The policies that judged, in the order of the call."""
    _reply: Sequence[Any] = field(default=(), repr=False)
    _local_retry_after: timedelta | None = None

    @property
    def retry_at(self) -> datetime | None:
        """The first instant at which the same call would pass, all else unchanged; None: now, or never by waiting."""
        if self._reply:
            retry = self._reply[3]
            return None if retry <= 0 else instant(retry)
        if self._local_retry_after is None:
            return None
        return datetime.now(UTC) + self._local_retry_after

    @property
    def retry_after(self) -> timedelta | None:
        """How long until `retry_at`, by the store's clock at the time of the verdict."""
        if self._reply:
            retry = self._reply[3]
            return None if retry <= 0 else timedelta(milliseconds=retry - self._reply[4])
        return self._local_retry_after

    @property
    def permanent(self) -> bool:
        """Whether a denied call would be denied at any time (its cost is above a limit, a circuit is forced open)."""
        return bool(self._reply) and not self.allowed and self._reply[3] == _NEVER

    @property
    def judged_at(self) -> datetime | None:
        """The store's clock at the decision; None when the store did not decide."""
        return instant(self._reply[4]) if self._reply else None

    @property
    def permit(self) -> str:
        """What a report about this call must carry; empty when there is nothing to report."""
        return str(self._reply[5]) if self._reply else ""

    @property
    def library_version(self) -> str:
        """Version of the function library that judged."""
        return str(self._reply[6]) if self._reply else ""

    @property
    def replayed(self) -> bool:
        """Whether this is the first verdict of a repeated request, and nothing was charged again."""
        return bool(self._reply) and self._reply[7] == 1

    @property
    def next_call_at(self) -> datetime | None:
        """When the spacing admits the next call, after an admitted one."""
        return instant(self._reply[8]) if self._reply and self._reply[8] else None

    @property
    def shadow(self) -> tuple[str, ...]:
        """Rules in Shadow mode that would have denied this call."""
        return tuple(self._reply[9].split(",")) if self._reply and self._reply[9] else ()

    @property
    def config_hash(self) -> str:
        """Hash of the (first) policy that judged, as in its status."""
        return str(self._reply[_HEAD]) if self._reply else ""

    @property
    def breaker(self) -> BreakerName | Literal[""]:
        """State of the (first) policy's circuit after the decision; empty when the store did not decide."""
        return _BREAKERS[self._reply[_HEAD + 1]] if self._reply else ""

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """Every limit after the decision, in the order of the policies."""
        if not self._reply:
            return ()
        found, at = [], _HEAD
        for policy in self.policies:
            count = self._reply[at + 2]
            at += _POLICY
            for _ in range(count):
                name, amount, remaining, resets = self._reply[at : at + _LIMIT]
                found.append(LimitState(name, amount, remaining, instant(resets) if resets else None, policy))
                at += _LIMIT
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units that are charged and come back unless the reservation is committed before its lease ends."""

    verdict: Verdict
    id: str
    execution: str

    @property
    def allowed(self) -> bool:
        """Whether the units are held."""
        return self.verdict.allowed


class Denied(Exception):  # noqa: N818 - the name reads as what happened to the call
    """A guarded call was not admitted."""

    def __init__(self, verdict: Verdict) -> None:
        wait = verdict.retry_after
        after = f"; retry after {wait.total_seconds():.3f} s" if wait is not None else ""
        super().__init__(f"denied by {verdict.rule}: {verdict.reason}{after}")
        self.verdict = verdict


class LimiterUsageError(ValueError):
    """The program called the limiter in a way that no waiting mends."""


class ExecutionRequired(LimiterUsageError):  # noqa: N818 - named after what is needed
    """The policy limits units per execution, and the call named none."""
