"""What both clients share: how a call is written for the library, how its reply is read, what a failure means."""

import json
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from redis import ResponseError

from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable
from shipkeeper.resources.schedule import milliseconds

from .failures import StoreError
from .keys import DEFAULT_PREFIX, PolicyKeys
from .verdict import ExecutionRequired, LimiterUsageError, Reply, Verdict

Outcome = Literal["Success", "Failure", "Released"]
Subject = str | Sequence[str]
_MAX_NAME: Final = 256
_HEADER: Final = 55
_NO_PERMIT: Final = "-"
_KNOWN_SUBJECTS: Final = 4096
_ALLOWED: Final = '{"allowed":true,'


@dataclass(frozen=True)
class Call:
    """One FCALL."""

    function: str
    keys: tuple[str, ...]
    arguments: tuple[str | int, ...]


class PolicyCalls:
    """Writes calls for one policy, or for several of one namespace that must all admit a call."""

    def __init__(self, *, namespace: str, policy: str | Sequence[str], key_prefix: str = DEFAULT_PREFIX) -> None:
        self.policies = (policy,) if isinstance(policy, str) else tuple(policy)
        if not self.policies:
            raise LimiterUsageError("policy must name at least one policy")
        self._keys = tuple(PolicyKeys(namespace=namespace, policy=name, prefix=key_prefix) for name in self.policies)
        self.configs = tuple(keys.config for keys in self._keys)
        self._states: dict[tuple[str, ...], tuple[str, ...]] = {}

    def subjects(self, subject: Subject) -> tuple[str, ...]:
        """Return one subject for each policy."""
        each = (subject,) * len(self.policies) if isinstance(subject, str) else tuple(subject)
        if len(each) != len(self.policies):
            raise LimiterUsageError(f"{len(each)} subjects for {len(self.policies)} policies; give one or one for each")
        return each

    def states(self, subjects: tuple[str, ...]) -> tuple[str, ...]:
        """Return the state key of each subject. Raises LimiterUsageError for a subject that cannot be in a key."""
        known = self._states.get(subjects)
        if known is not None:
            return known
        try:
            states = tuple(keys.state(each) for keys, each in zip(self._keys, subjects, strict=True))
        except ValueError as error:
            raise LimiterUsageError(str(error)) from None
        if len(self._states) >= _KNOWN_SUBJECTS:
            self._states.clear()
        self._states[subjects] = states
        return states

    def acquire(
        self,
        subjects: tuple[str, ...],
        *,
        cost: int,
        execution: str | None,
        request_id: str | None,
        reservation: str = "",
        lease: timedelta = timedelta(0),
    ) -> Call:
        """Write a charge. Raises LimiterUsageError for a cost, a name or a lease that cannot be."""
        if cost < 1:
            raise LimiterUsageError(f"cost must be at least 1, got {cost}; to look without charging, use peek")
        states = self.states(subjects)
        if cost == 1 and execution is None and request_id is None and not reservation:
            return Call("shipkeeper_acquire", states, self.configs)  # by far the usual call: nothing else to say
        arguments: tuple[str | int, ...] = (*self.configs, cost, _name(execution, "execution"))
        if request_id is not None or reservation:
            arguments += (_name(request_id, "request_id"),)
        if reservation:
            arguments += (reservation, _whole_milliseconds(lease))
        return Call("shipkeeper_acquire", states, arguments)

    def peek(self, subjects: tuple[str, ...], *, cost: int, execution: str | None) -> Call:
        """Write a look."""
        return Call("shipkeeper_peek", self.states(subjects), (*self.configs, cost, _name(execution, "execution")))

    def report(self, verdict: Verdict, outcome: Outcome, duration: timedelta | None) -> Call | None:
        """Write a report; None when no circuit breaker waits for one."""
        if not verdict.permit.strip(f"{_NO_PERMIT},"):
            return None
        spent = round((duration or timedelta()) / timedelta(milliseconds=1))
        states = self.states(verdict.subject)
        return Call("shipkeeper_report", states, (*self.configs, verdict.permit, outcome, spent))

    def settle(self, function: Literal["commit", "cancel"], verdict: Verdict, identity: str, execution: str) -> Call:
        """Write the end of a reservation; a cancelled one gives its breaker's permit back as well."""
        arguments: tuple[str | int, ...] = (*self.configs, identity, execution)
        if function == "cancel":
            arguments += (verdict.permit,)
        return Call(f"shipkeeper_{function}", self.states(verdict.subject), arguments)

    def verdict(self, reply: str, subjects: tuple[str, ...]) -> Verdict:
        """Read the library's verdict."""
        told = Reply(reply)
        if reply.startswith(_ALLOWED):
            return Verdict(True, "", "", "", subjects, self.policies, told)
        return Verdict(False, told["rule"], told["reason"], "", subjects, self.policies, told)


def new_reservation_id() -> str:
    """Return an identity that no other reservation has."""
    return secrets.token_hex(8)


def _name(value: str | None, what: str) -> str:
    if value is None:
        return ""
    if not value or len(value) > _MAX_NAME or not value.isprintable():
        raise LimiterUsageError(f"{what} must have 1 to {_MAX_NAME} printable characters")
    return value


def _whole_milliseconds(lease: timedelta) -> int:
    whole = round(lease / timedelta(milliseconds=1))
    if whole < 1:
        raise LimiterUsageError("lease must be at least one millisecond")
    return whole


def usage_error(error: ResponseError) -> LimiterUsageError | None:
    """Return what the program did wrong, where the library's error says so."""
    text = str(error)
    if "SKEXECUTION" in text:
        return ExecutionRequired("the policy limits units per execution: pass execution=, the name of this run")
    if "SKARGUMENT" in text:
        return LimiterUsageError(text.partition("SKARGUMENT ")[2])
    if "CROSSSLOT" in text:
        return LimiterUsageError("policies of one call must be of one namespace")
    return None


class LocalBudget:
    """What this process may admit by itself: a first-use window on the process's own clock."""

    def __init__(self, *, amount: int, period: timedelta) -> None:
        self.amount = amount
        self.period = period
        self._lock = threading.Lock()
        self._window_start = 0.0
        self._used = 0

    def take(self, cost: int) -> timedelta | None:
        """Charge the cost and return None, or return how long to wait."""
        with self._lock:
            now = time.monotonic()
            if self._used == 0 or now >= self._window_start + self.period.total_seconds():
                self._window_start, self._used = now, 0
            if self._used + cost <= self.amount:
                self._used += cost
                return None
            return timedelta(seconds=self._window_start + self.period.total_seconds() - now)


class FailurePolicy:
    """What is answered without the store: as the program says, or else as the policy said when it was last read."""

    def __init__(self, fixed: OnStoreUnavailable | None) -> None:
        self._fixed = fixed
        self.settings = fixed or OnStoreUnavailable()
        self.config_hash = ""
        self._budget = self._new_budget()

    def _new_budget(self) -> LocalBudget | None:
        budget = self.settings.local_budget
        if budget is None:
            return None
        return LocalBudget(amount=budget.amount, period=timedelta(milliseconds=milliseconds(budget.period)))

    @property
    def timeout(self) -> float:
        """Seconds to wait for a verdict."""
        return milliseconds(self.settings.timeout) / 1000

    def is_outdated(self, verdict: Verdict) -> bool:
        """Whether the policy should be read again: a verdict came from another version of it."""
        return self._fixed is None and not verdict.is_of_config(self.config_hash)

    def learn(self, config_hash: str, stored: str | None) -> None:
        """Take the settings from the stored policy. A stored text that is not one leaves them as they are."""
        self.config_hash = config_hash
        try:
            settings = OnStoreUnavailable.model_validate(json.loads((stored or "")[_HEADER:])["client"])
        except (ValueError, KeyError, TypeError):
            return
        if settings != self.settings:
            self.settings = settings
            self._budget = self._new_budget()

    def answer(self, error: StoreError, *, cost: int, subjects: tuple[str, ...], policies: tuple[str, ...]) -> Verdict:
        """Return the verdict that takes the store's place; cost 0 looks and charges nothing."""
        allowed, reason, wait = self.settings.action == "Allow", "StoreUnavailable", None
        if self._budget is not None:
            wait = self._budget.take(cost)
            allowed = wait is None
            reason = "StoreUnavailable" if allowed else "LocalBudgetSpent"
        return Verdict(
            allowed=allowed,
            rule="store",
            reason=reason,
            store_failure=error.failure.value,
            subject=subjects,
            policies=policies,
            _local_retry_after=wait,
        )
