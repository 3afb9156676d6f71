"""The status of a RateLimitPolicy: what was read back from Redis, never what was merely written there."""

from typing import Literal

from pydantic import Field

from .base import Instant, ResourceModel, StatusModel, list_map

BreakerState = Literal["Closed", "Open", "HalfOpen", "ForcedOpen", "Disabled"]


class StorePrimary(ResourceModel):
    """One Redis primary, as it answered."""

    address: str = Field(min_length=1, max_length=261)
    """Host and port."""
    run_id: str = Field(default="", max_length=64)
    """Redis' own id of this run of the server: it changes when the server restarts."""
    library_version: str = Field(default="", max_length=64)
    """Version of the function library read back from it; empty: it has none."""
    holds_policy: bool = False
    """Whether the policy's keys belong on this primary (in a Redis Cluster one primary holds them)."""
    config_hash: str = Field(default="", max_length=64)
    """Hash computed on the server over the policy it holds; empty: none, or not its part."""


class LimitStatus(ResourceModel):
    """One limit and its use by the subject that is nearest to exhausting it."""

    name: str = Field(min_length=1, max_length=40)
    """The limit's name."""
    amount: int = Field(ge=0, json_schema_extra={"format": "int64"})
    """Units per window."""
    used: int = Field(ge=0, json_schema_extra={"format": "int64"})
    """Units used in the current window."""
    remaining: int = Field(ge=0, json_schema_extra={"format": "int64"})
    """Units left in the current window."""
    subject: str = Field(default="", max_length=256)
    """The subject whose use is shown: the one nearest to the limit."""
    resets_at: Instant | None = None
    """When all units are back; absent when nothing is used."""
    denied: int = Field(default=0, ge=0, json_schema_extra={"format": "int64"})
    """Calls this limit has denied since the library was loaded."""
    would_deny: int = Field(default=0, ge=0, json_schema_extra={"format": "int64"})
    """In Shadow mode: calls it would have denied since the library was loaded."""
    never_binds: str = Field(default="", max_length=1024)
    """Why the limit can never be the one that denies; empty when it can."""
    after_edit: Literal["", "CountKept", "CountRestarted"] = ""
    """What the last change of period, alignment or time zone did to the count: kept when the old window began within
    the new one, else restarted."""
    definition: str = Field(default="", max_length=256)
    """Period, alignment and time zone that the count belongs to, as one line."""


class BreakerStatus(ResourceModel):
    """The circuit breaker of the subject whose circuit is in the worst state."""

    state: BreakerState
    """Closed: calls pass. Open: none. HalfOpen: probes only. ForcedOpen, Disabled: by override."""
    subject: str = Field(default="", max_length=256)
    """The subject whose circuit is shown."""
    since: Instant | None = None
    """When the state was entered."""
    open_until: Instant | None = None
    """When the first probe may pass."""
    permits_in_use: int = Field(default=0, ge=0)
    """Probes under way."""
    consecutive_failures: int = Field(default=0, ge=0)
    """Failures since the last success."""
    last_trip: str = Field(default="", max_length=64)
    """What opened the circuit: ConsecutiveFailures, FailureRate, SlowCalls or ProbeFailed."""


class Repair(ResourceModel):
    """The last time the store had lost something and it was put back."""

    at: Instant
    """When the loss was seen."""
    reason: str = Field(min_length=1, max_length=64)
    """What was lost: LibraryMissing, LibraryDiffers, ConfigMissing, ConfigDiffers."""
    message: str = Field(default="", max_length=1024)
    """Where, in words."""


class RateLimitPolicyStatus(StatusModel):
    """What is enforced, how it is known, and how much is used."""

    config_hash: str = Field(default="", max_length=64)
    """Hash of the policy read back from the store; verdicts carry the same."""
    library_version: str = Field(default="", max_length=64)
    """Version of the function library read back from every primary."""
    valid_until: Instant | None = None
    """The calendar tables in the store reach to here; they are renewed long before."""
    primaries: tuple[StorePrimary, ...] = Field(default=(), max_length=256, json_schema_extra=list_map("address"))
    """Every primary of the store, as it answered."""
    tightest: str = Field(default="", max_length=128)
    """The limit nearest to exhaustion, as `name used/amount`."""
    usage_as_of: Instant | None = None
    """When use was last read and differed; refreshed at most every 30 seconds, and only on change."""
    limits: tuple[LimitStatus, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("name"))
    """Use per limit."""
    breaker: BreakerStatus | None = None
    """State of the circuit breaker."""
    last_repair: Repair | None = None
    """The last loss that was repaired."""
    state_lost_at: Instant | None = None
    """When the store was last found without the policy it had held: windows running then may have lost their counts."""
