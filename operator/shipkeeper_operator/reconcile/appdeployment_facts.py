"""What is known about an application, and what may be asked for beside its children: plain data, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shipkeeper_operator.children.appdeployment_pod import AcceptedKeys
from shipkeeper_operator.children.metadata import Manifest

Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ObservedApiKey:
    """A generated API key's Secret, without the keys."""

    uid: str
    is_ours: bool
    """Whether it belongs to this application; another's Secret is left alone."""
    caller_id: str
    """Random name of the key that callers read."""
    accepted: AcceptedKeys
    """What the pods accept."""
    issued_at: datetime
    """When the newest key was generated."""
    revision: str | None
    """The `rotation.revision` that the newest key was generated for."""
    previous_valid_until: datetime | None = None
    """When an overlap ends."""
    is_whole: bool = True
    """Whether every value that should be there is there."""


@dataclass(frozen=True, kw_only=True)
class ObservedClaim:
    """The volume claim of a SQLite file."""

    phase: str
    """Pending, Bound or Lost, as Kubernetes says it."""
    is_ours: bool
    """Whether the claim carries our labels."""
    too_small: bool = False
    """Whether the spec now asks for more."""


@dataclass(frozen=True, kw_only=True)
class ObservedApp:
    """Everything that a decision about an application needs."""

    deployment: Object | None = None
    pods: tuple[Object, ...] = ()
    """Pods that are not on their way out."""
    migrations: Mapping[str, Object] = field(default_factory=dict)
    """The MigrationJobs of the namespace that are required and exist, by name."""
    policies: Mapping[str, Object] = field(default_factory=dict)
    """The RateLimitPolicies of the namespace that are required and exist, by name."""
    api_key: ObservedApiKey | None = None
    claim: ObservedClaim | None = None
    children: frozenset[tuple[str, str]] = frozenset()
    """Kind and name of the application's objects that exist."""
    served_kinds: frozenset[str] = frozenset()
    """Of the kinds that a cluster may or may not know: those that this one does."""


@dataclass(frozen=True, kw_only=True)
class GenerateApiKey:
    """Make the first key, or a new one where the Secret is gone or damaged."""

    metadata: Mapping[str, Any]
    """Metadata of the Secret, owner included."""
    revision: str | None
    issued_at: datetime
    replaces: str | None = None
    """The uid of a damaged Secret to delete first."""


@dataclass(frozen=True, kw_only=True)
class DistributeNewKey:
    """Begin a rotation: let the pods learn a new key besides the one that callers use."""

    namespace: str
    name: str
    caller_id: str
    """The rotation is for this key; if another is there by now, nothing is done."""
    revision: str | None
    issued_at: datetime


@dataclass(frozen=True, kw_only=True)
class PublishNewKey:
    """Let callers read the new key, now that every pod accepts it."""

    namespace: str
    name: str
    accepted_id: str
    previous_valid_until: datetime


@dataclass(frozen=True, kw_only=True)
class RetirePreviousKey:
    """End the overlap: pods no longer get the previous key."""

    namespace: str
    name: str
    accepted_id: str


@dataclass(frozen=True, kw_only=True)
class DeleteApiKey:
    """Delete a generated key that is no longer declared."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class EnsureVolumeClaim:
    """Create the volume claim of the SQLite file, or let it grow. Never shrinks or deletes it."""

    manifest: Manifest


AppEffect = GenerateApiKey | DistributeNewKey | PublishNewKey | RetirePreviousKey | DeleteApiKey | EnsureVolumeClaim
"""A write beside the children, of an object that is read by name or has no owner."""
