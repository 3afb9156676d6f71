"""What is known about a RateLimitPolicy's store, and what can be done to it: the vocabulary of its reconciliation."""

from dataclasses import dataclass
from datetime import datetime

from shipkeeper.limits.compiler import CompiledPolicy
from shipkeeper.limits.connection import StoreAddress
from shipkeeper.limits.keys import PolicyKeys
from shipkeeper.limits.store_state import StoreState, SubjectUse


@dataclass(frozen=True)
class Problem:
    """Why the store could not be read or written."""

    reason: str
    """The condition's reason."""
    message: str
    """What a person should know or do. Never holds the URL, a password or what a server said."""
    needs_person: bool
    """Whether waiting alone does not mend it."""


@dataclass(frozen=True)
class PastRepair:
    """A loss that this process has put right."""

    at: datetime
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ObservedStore:
    """What was found out in one observation."""

    address: StoreAddress | None = None
    """Where the store is, as the Secret says; None while that is not known."""
    store: StoreState | None = None
    """What every primary answered; None: see `problem`."""
    problem: Problem | None = None
    """Why there is no answer."""
    uses: tuple[SubjectUse, ...] | None = None
    """Use by subject; None: not read this time."""
    refusal: Problem | None = None
    """Why the store counts nothing although it answers: it refuses every write."""
    write_problem: Problem | None = None
    """Why the last write to the store failed, while none has succeeded since."""
    repair: PastRepair | None = None
    """The last loss that was put right."""
    keys_removed: bool = False
    """Whether this policy's keys were removed, for a policy that is being deleted."""


@dataclass(frozen=True, kw_only=True)
class InstallLibrary:
    """Load the function library on every primary."""

    uid: str
    address: StoreAddress
    repair: PastRepair | None
    """What was lost, if something was that had been there."""


@dataclass(frozen=True, kw_only=True)
class InstallPolicy:
    """Store the compiled policy."""

    uid: str
    address: StoreAddress
    keys: PolicyKeys
    policy: CompiledPolicy
    state_lost_at: datetime | None
    repair: PastRepair | None


@dataclass(frozen=True, kw_only=True)
class RemovePolicy:
    """Remove the policy and every counter under it."""

    uid: str
    address: StoreAddress
    keys: PolicyKeys


StoreEffect = InstallLibrary | InstallPolicy | RemovePolicy
