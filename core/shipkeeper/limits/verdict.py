"""What a caller gets: a verdict, the limits behind it, and the errors that a wrong call or a refusal raises."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

BreakerName = Literal["Closed", "Open", "HalfOpen", "ForcedOpen", "Disabled"]
_NEVER: Final = -1
_NO_SHADOW: Final = '"shadow":[],'


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

    @property
    def used(self) -> int:
        """Units used, at most the amount."""
        return self.amount - self.remaining


class Reply:
    """A verdict as the library writes it, a JSON text (docs/limits.md); read when first asked for, and only once."""

    __slots__ = ("_told", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._told: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return a member of the document."""
        if not self._told:
            self._told = json.loads(self.text)
        return self._told[name]


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
    _reply: Reply | None = field(default=None, repr=False)
    _local_retry_after: timedelta | None = None

    @property
    def refused_by(self) -> str:
        """The policy whose rule denied the call; empty when allowed, or when the store did not decide."""
        return self.policies[self._reply["refusedBy"] - 1] if self._reply is not None and not self.allowed else ""

    @property
    def retry_at(self) -> datetime | None:
        """The first instant at which the same call would pass, all else unchanged; None: now, or never by waiting."""
        if self._reply is not None:
            retry = self._reply["retryAt"]
            return None if retry <= 0 else instant(retry)
        if self._local_retry_after is None:
            return None
        return datetime.now(UTC) + self._local_retry_after

    @property
    def retry_after(self) -> timedelta | None:
        """How long until `retry_at`, by the store's clock at the time of the verdict."""
        if self._reply is not None:
            retry = self._reply["retryAt"]
            return None if retry <= 0 else timedelta(milliseconds=retry - self._reply["now"])
        return self._local_retry_after

    @property
    def permanent(self) -> bool:
        """Whether a denied call would be denied at any time (its cost is above a limit, a circuit is forced open)."""
        return self._reply is not None and not self.allowed and self._reply["retryAt"] == _NEVER

    @property
    def judged_at(self) -> datetime | None:
        """The store's clock at the decision; None when the store did not decide."""
        return instant(self._reply["now"]) if self._reply is not None else None

    @property
    def permit(self) -> str:
        """What a report about this call must carry; empty when there is nothing to report."""
        return str(self._reply["permit"]) if self._reply is not None else ""

    @property
    def library_version(self) -> str:
        """Version of the function library that judged."""
        return str(self._reply["library"]) if self._reply is not None else ""

    @property
    def replayed(self) -> bool:
        """Whether this is the first verdict of a repeated request, and nothing was charged again."""
        return self._reply is not None and bool(self._reply["replayed"])

    @property
    def next_call_at(self) -> datetime | None:
        """When the spacing admits the next call, after an admitted one."""
        return instant(self._reply["nextCallAt"]) if self._reply is not None and self._reply["nextCallAt"] else None

    @property
    def shadow(self) -> tuple[str, ...]:
        """Rules in Shadow mode that would have denied this call."""
        if self._reply is None or _NO_SHADOW in self._reply.text:
            return ()
        return tuple(self._reply["shadow"])

    @property
    def config_hash(self) -> str:
        """Hash of the (first) policy that judged, as in its status."""
        return str(self._reply["policies"][0]["hash"]) if self._reply is not None else ""

    def is_of_config(self, config_hash: str) -> bool:
        """Whether the (first) policy that judged has this hash; the document is not read for it."""
        return self._reply is not None and f'"policies":[{{"hash":"{config_hash}"' in self._reply.text

    @property
    def breakers(self) -> tuple[BreakerName, ...]:
        """State of each policy's circuit after the decision; empty when the store did not decide."""
        return tuple(policy["breaker"] for policy in self._reply["policies"]) if self._reply is not None else ()

    @property
    def breaker(self) -> BreakerName | Literal[""]:
        """State of the (first) policy's circuit after the decision; empty when the store did not decide."""
        return self.breakers[0] if self._reply is not None else ""

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """Every limit after the decision, in the order of the policies."""
        return limit_states(self._reply, self.policies) if self._reply is not None else ()


def limit_states(reply: Reply, policies: Sequence[str]) -> tuple[LimitState, ...]:
    """Return the limits in a reply about these policies."""
    return tuple(
        _limit_state(limit, policy)
        for policy, judged in zip(policies, reply["policies"], strict=True)
        for limit in judged["limits"]
    )


def _limit_state(limit: dict[str, Any], policy: str) -> LimitState:
    resets = limit["resetsAt"]
    return LimitState(
        name=limit["name"],
        amount=limit["amount"],
        remaining=limit["remaining"],
        resets_at=instant(resets) if resets else None,
        policy=policy,
    )


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
