"""What a reconciliation answers: the children that should exist, the status, and when to look again.

A reconcile function is pure: `reconcile(resource, observed, *, now) -> Outcome`. The controller applies the outcome;
the same state always gives the same outcome, whatever woke it.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, Literal, TypeVar

from shipkeeper.resources.base import StatusModel
from shipkeeper_operator.children.metadata import Manifest as Manifest

StatusT = TypeVar("StatusT", bound=StatusModel)
EffectT = TypeVar("EffectT")


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the resource, for what a condition's transition does not already say."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[StatusT, EffectT]):
    """The answer of one reconciliation, applied in this order: finalizer, children, effects, status, events."""

    status: StatusT
    """The whole status; written only where it differs from what the API server holds."""
    children: tuple[Manifest, ...] = ()
    """Every object that should exist and be owned by the resource; an owned one that is not here is deleted."""
    retained: tuple[tuple[str, str], ...] = ()
    """Kind and name of owned objects that stay as they are: neither written nor deleted (a Job cannot be changed)."""
    effects: tuple[EffectT, ...] = ()
    """Writes outside the API server (to Redis). After any, the resource is observed again: read back, not assumed."""
    events: tuple[Event, ...] = ()
    finalizer: bool = False
    """Whether our finalizer must be on the object (False removes it)."""
    requeue_after: timedelta | None = None
    """Look again after this long, at the latest. None: only when something changes (or the slow resync comes)."""
