"""The conditions of kstatus, in one place, so that all three kinds speak the same way.

Ready is always present. Reconciling and Stalled are "abnormal-true": present only while they are true, as Flux and
kstatus expect. A transition time changes only when the status of its condition changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from .base import Condition

ConditionStatus = Literal["True", "False", "Unknown"]

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"

WITH_RETRY = "ProgressingWithRetry"
"""Reason of Reconciling while a failure is retried, as Flux has it; Ready has the failure's own reason."""


@dataclass(frozen=True)
class Claim:
    """A condition before it is dated: what is said, without since when."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


def ready(reason: str, message: str) -> tuple[Claim, ...]:
    """All is as declared: kstatus Current."""
    return (Claim(READY, "True", reason, message),)


def reconciling(reason: str, message: str) -> tuple[Claim, ...]:
    """Work is under way or retried by itself: kstatus InProgress."""
    return (Claim(READY, "False", reason, message), Claim(RECONCILING, "True", reason, message))


def retrying(reason: str, message: str) -> tuple[Claim, ...]:
    """Something failed and is tried again by itself: kstatus InProgress, and worth a warning."""
    return (Claim(READY, "False", reason, message), Claim(RECONCILING, "True", WITH_RETRY, message))


def stalled(reason: str, message: str) -> tuple[Claim, ...]:
    """Nothing will improve until a person acts: kstatus Failed. The message says what to do."""
    return (Claim(READY, "False", reason, message), Claim(STALLED, "True", reason, message))


def dated(
    claims: Iterable[Claim], *, previous: Sequence[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Turn claims into conditions, keeping the transition time of each whose status did not change."""
    since = {condition.type: condition for condition in previous}
    conditions = []
    for claim in claims:
        before = since.get(claim.type)
        unchanged = before is not None and before.status == claim.status
        conditions.append(
            Condition(
                type=claim.type,
                status=claim.status,
                reason=claim.reason,
                message=claim.message,
                observed_generation=generation,
                last_transition_time=before.last_transition_time if before and unchanged else now,
            )
        )
    return tuple(conditions)


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of that type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition of that type is present and True."""
    condition = find(conditions, type_)
    return condition is not None and condition.status == "True"
