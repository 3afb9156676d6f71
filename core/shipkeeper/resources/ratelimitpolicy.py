"""RateLimitPolicy: quotas by calendar window, spacing, active hours and a circuit breaker, enforced in Redis."""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .base import Resource, ResourceModel, SecretKeyReference, cel, list_map, with_cel
from .circuitbreaker import CircuitBreaker
from .kinds import Kind, PrinterColumn
from .ratelimitpolicy_status import RateLimitPolicyStatus
from .schedule import ActiveHours, RuleMode, Span, TimeOfDay, TimeZone, Weekday, milliseconds

__all__ = [
    "CALENDAR_PERIODS",
    "EXECUTION",
    "KIND",
    "Limit",
    "LocalBudget",
    "OnStoreUnavailable",
    "RateLimitPolicy",
    "RateLimitPolicySpec",
    "RateLimitPolicyStatus",
    "Spacing",
    "Store",
]

CalendarPeriod = Literal["Second", "Minute", "Hour", "Day", "Week", "Month"]
CALENDAR_PERIODS: Final[tuple[CalendarPeriod, ...]] = ("Second", "Minute", "Hour", "Day", "Week", "Month")
EXECUTION: Final = "Execution"
MAX_AMOUNT: Final = 1_000_000_000

_SENTINEL_NEEDS_MASTER = "store.sentinelMaster is needed with topology Sentinel, and only there: the name of the master"


class Store(ResourceModel):
    """The Redis that holds the counters and judges the calls."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("(self.topology == 'Sentinel') == has(self.sentinelMaster)", _SENTINEL_NEEDS_MASTER)
        )
    )

    url_from: SecretKeyReference
    """Where the URL stands: redis://user:password@host:6379/0, or rediss:// for TLS. With Sentinel or Cluster, hosts
    may be several, separated by commas."""
    topology: Literal["Standalone", "Sentinel", "Cluster"] = "Standalone"
    """Standalone: the URL names the server. Sentinel: it names the sentinels. Cluster: it names some nodes."""
    sentinel_master: str | None = Field(default=None, min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")
    """The name by which the sentinels know the master."""
    key_prefix: str = Field(
        default="shipkeeper", min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
    )
    """First part of every key, so that several Kubernetes clusters can share one Redis."""

    @model_validator(mode="after")
    def _sentinel_has_a_master(self) -> Self:
        if (self.topology == "Sentinel") != (self.sentinel_master is not None):
            raise ValueError(_SENTINEL_NEEDS_MASTER)
        return self


LimitName = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]

_PERIOD_PATTERN = r"^(Second|Minute|Hour|Day|Week|Month|Execution|([0-9]{1,8}(\.[0-9]{1,9})?(ms|s|m|h))+)$"
_NAMED = "['Second', 'Minute', 'Hour', 'Day', 'Week', 'Month', 'Execution']"

_PERIOD_RANGE = "period must be at least 1s and at most 8784h (366 days)"
_DURATION_ALIGNMENT = (
    "a period given as a duration has no calendar: set alignment to Rolling or FirstUse, "
    "or use one of Second, Minute, Hour, Day, Week, Month"
)
_MONTH_ALIGNMENT = "a month has no fixed length: period Month needs alignment Calendar; for 30 days write period 720h"
_EXECUTION_ALIGNMENT = "period Execution has no alignment: leave alignment at its default, Calendar"
_WEEK_START = "weekStart has an effect only with period Week and alignment Calendar; remove it"
_RESET_AT = "resetAt has an effect only with period Day, Week or Month and alignment Calendar; remove it"
_BURST_ALIGNMENT = "burst needs alignment Rolling, where units come back evenly over the period"
_RESERVED_NAME = "name must not be spacing, reservations, config or store: verdicts use these words for other rules"
_BURST_ORDER = "burst must not be above amount"


class Limit(ResourceModel):
    """So many units in a period. Its name is its counter's identity: editing the amount keeps what was used."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel(
                f"self.period in {_NAMED} || (duration(self.period) >= duration('1s')"
                " && duration(self.period) <= duration('8784h'))",
                _PERIOD_RANGE,
            ),
            cel(f"self.period in {_NAMED} || self.alignment != 'Calendar'", _DURATION_ALIGNMENT),
            cel("self.period != 'Month' || self.alignment == 'Calendar'", _MONTH_ALIGNMENT),
            cel("self.period != 'Execution' || self.alignment == 'Calendar'", _EXECUTION_ALIGNMENT),
            cel(
                "self.weekStart == 'Monday' || (self.period == 'Week' && self.alignment == 'Calendar')",
                _WEEK_START,
            ),
            cel(
                "self.resetAt == '00:00' || (self.period in ['Day', 'Week', 'Month'] && self.alignment == 'Calendar')",
                _RESET_AT,
            ),
            cel("!has(self.burst) || self.alignment == 'Rolling'", _BURST_ALIGNMENT),
            cel("!has(self.burst) || self.burst <= self.amount", _BURST_ORDER),
            cel("!(self.name in ['spacing', 'reservations', 'config', 'store'])", _RESERVED_NAME),
        )
    )

    name: LimitName
    """Identity of the counter; verdicts, metrics and status name the limit by it. Not one of spacing, reservations,
    config and store, which verdicts use for other rules."""
    amount: int = Field(ge=1, le=MAX_AMOUNT)
    """Units per period. A call costs one unit unless it says otherwise."""
    period: str = Field(pattern=_PERIOD_PATTERN, min_length=2, max_length=32)
    """Second, Minute, Hour, Day, Week or Month; Execution (one run, named by the caller); or a duration such as 90s,
    36h (no days: seven days are 168h)."""
    alignment: Literal["Calendar", "Rolling", "FirstUse"] = "Calendar"
    """Calendar: windows begin by the clock in the policy's time zone. Rolling: any span of the period's length, in 16
    steps, never more than the amount. FirstUse: a window begins with the first call after the last window's end."""
    week_start: Weekday = "Monday"
    """First day of a calendar week."""
    reset_at: TimeOfDay = "00:00"
    """Wall-clock time at which a calendar Day, Week or Month begins. A time that a clock change skips is the change."""
    burst: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)
    """At most so many units at once; they come back evenly, amount per period. The amount per period holds as well."""
    mode: RuleMode = "Enforce"
    """Enforce: deny above the amount. Shadow: count and report, never deny. Off: no effect, nothing counted (write it
    in quotes: YAML reads a bare Off as false)."""

    @model_validator(mode="after")
    def _window_can_exist(self) -> Self:
        named = self.period == EXECUTION or self.period in CALENDAR_PERIODS
        calendar = self.alignment == "Calendar"
        if not named and not 1000 <= milliseconds(self.period) <= 8784 * 3_600_000:
            raise ValueError(f"limit {self.name}: {_PERIOD_RANGE}")
        broken = {
            _DURATION_ALIGNMENT: not named and calendar,
            _MONTH_ALIGNMENT: self.period == "Month" and not calendar,
            _EXECUTION_ALIGNMENT: self.period == EXECUTION and not calendar,
            _WEEK_START: self.week_start != "Monday" and not (self.period == "Week" and calendar),
            _RESET_AT: self.reset_at != "00:00" and not (self.period in ("Day", "Week", "Month") and calendar),
            _BURST_ALIGNMENT: self.burst is not None and self.alignment != "Rolling",
            _BURST_ORDER: self.burst is not None and self.burst > self.amount,
            _RESERVED_NAME: self.name in ("spacing", "reservations", "config", "store"),
        }
        for message, is_broken in broken.items():
            if is_broken:
                raise ValueError(f"limit {self.name}: {message}")
        return self


_SPACING_ORDER = "spacing.min must not be above spacing.max"
_SPACING_POSITIVE = "spacing.max must be longer than zero; to have no spacing, remove spacing"
_SPACING_BOUND = "spacing.max must be at most 24h"


class Spacing(ResourceModel):
    """A pause after each admitted call, drawn once on the server between min and max and shared by all replicas."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("duration(self.min) <= duration(self.max)", _SPACING_ORDER),
            cel("duration(self.max) > duration('0s')", _SPACING_POSITIVE),
            cel("duration(self.max) <= duration('24h')", _SPACING_BOUND),
        )
    )

    min: Span
    """Shortest pause, for example 90s."""
    max: Span
    """Longest pause, for example 180s. Equal to min: the pause is fixed."""
    mode: RuleMode = "Enforce"
    """Enforce: deny during the pause. Shadow: admit and report. Off: no effect (write it in quotes)."""

    @model_validator(mode="after")
    def _min_up_to_max(self) -> Self:
        if milliseconds(self.min) > milliseconds(self.max):
            raise ValueError(_SPACING_ORDER)
        if milliseconds(self.max) <= 0:
            raise ValueError(_SPACING_POSITIVE)
        if milliseconds(self.max) > 86_400_000:
            raise ValueError(_SPACING_BOUND)
        return self


_BUDGET_PERIOD = "onStoreUnavailable.localBudget.period must be at least 1s and at most 744h (31 days)"


class LocalBudget(ResourceModel):
    """What one process may admit by itself while the store is unavailable."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel(
                "duration(self.period) >= duration('1s') && duration(self.period) <= duration('744h')",
                _BUDGET_PERIOD,
            )
        )
    )

    amount: int = Field(ge=1, le=MAX_AMOUNT)
    """Units per period, for each process: with three replicas the worst case is three times this."""
    period: Span
    """Length of the budget's window, which begins with its first use."""

    @model_validator(mode="after")
    def _period_can_exist(self) -> Self:
        if not 1000 <= milliseconds(self.period) <= 744 * 3_600_000:
            raise ValueError(_BUDGET_PERIOD)
        return self


_BUDGET_WITH_ACTION = "onStoreUnavailable.localBudget is needed with action LocalBudget, and only there"
_TIMEOUT_RANGE = "onStoreUnavailable.timeout must be at least 10ms and at most 60s"


class OnStoreUnavailable(ResourceModel):
    """What a client answers when it cannot get a verdict from the store."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("(self.action == 'LocalBudget') == has(self.localBudget)", _BUDGET_WITH_ACTION),
            cel(
                "duration(self.timeout) >= duration('10ms') && duration(self.timeout) <= duration('60s')",
                _TIMEOUT_RANGE,
            ),
        )
    )

    action: Literal["Deny", "Allow", "LocalBudget"] = "Deny"
    """Deny: no call without a verdict. Allow: every call. LocalBudget: each process admits a budget of its own."""
    timeout: Span = "1s"
    """How long a client waits for a verdict before it takes the action."""
    local_budget: LocalBudget | None = None
    """The budget of action LocalBudget."""

    @model_validator(mode="after")
    def _budget_with_its_action(self) -> Self:
        if (self.action == "LocalBudget") != (self.local_budget is not None):
            raise ValueError(_BUDGET_WITH_ACTION)
        if not 10 <= milliseconds(self.timeout) <= 60_000:
            raise ValueError(_TIMEOUT_RANGE)
        return self


_SOMETHING_TO_ENFORCE = (
    "the policy limits nothing: give at least one of limits, spacing, activeHours and circuitBreaker"
)


class RateLimitPolicySpec(ResourceModel):
    """What is allowed, and where it is enforced."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel(
                "(has(self.limits) && size(self.limits) > 0) || has(self.spacing) || has(self.activeHours)"
                " || has(self.circuitBreaker)",
                _SOMETHING_TO_ENFORCE,
            )
        )
    )

    store: Store
    """The Redis that holds the counters."""
    mode: Literal["Enforce", "Shadow", "Off"] = "Enforce"
    """Enforce: calls are denied. Shadow: every rule is at most Shadow: calls pass and status says which would not.
    Off: calls pass, nothing is counted (write it in quotes: YAML reads a bare Off as false)."""
    time_zone: TimeZone = "UTC"
    """The IANA time zone of calendar windows and active hours, for example Europe/Paris."""
    limits: tuple[Limit, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("name"))
    """The quotas. A call must fit in all of them, or it is denied and charges none."""
    spacing: Spacing | None = None
    """A pause between two admitted calls."""
    active_hours: ActiveHours | None = None
    """When calls are admitted at all."""
    circuit_breaker: CircuitBreaker | None = None
    """Holds calls back while the dependency fails."""
    max_subjects: int | None = Field(default=None, ge=1, le=1_000_000)
    """At most so many subjects (accounts, tenants, users) have counters at once; a further one is refused by name.
    Absent: no bound."""
    on_store_unavailable: OnStoreUnavailable = OnStoreUnavailable()
    """What a client does without a verdict."""
    on_state_loss: Literal["StartFull", "DenyUntilNextWindow"] = "StartFull"
    """After the store lost its data: StartFull: quotas begin anew. DenyUntilNextWindow: windows that were running at
    the loss admit nothing more."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not (self.limits or self.spacing or self.active_hours or self.circuit_breaker):
            raise ValueError(_SOMETHING_TO_ENFORCE)
        names = [limit.name for limit in self.limits]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"limits names {repeated!r} twice; a limit's name is its counter's identity")
        return self


RateLimitPolicy = Resource[RateLimitPolicySpec, RateLimitPolicyStatus]

KIND = Kind(
    kind="RateLimitPolicy",
    plural="ratelimitpolicies",
    singular="ratelimitpolicy",
    short_names=("rlp",),
    spec=RateLimitPolicySpec,
    status=RateLimitPolicyStatus,
    description="Quotas by calendar window, spacing, active hours and a circuit breaker, enforced in Redis.",
    columns=(
        PrinterColumn("Mode", ".spec.mode", "Enforce, Shadow or Off"),
        PrinterColumn(
            "Enforced",
            '.status.conditions[?(@.type=="Enforced")].status',
            "Whether this very policy was read back from every primary of the store",
        ),
        PrinterColumn("Tightest", ".status.tightest", "The limit nearest to exhaustion: name, used / amount"),
        PrinterColumn("Breaker", ".status.breaker.state", "State of the circuit"),
        PrinterColumn(
            "Reason", '.status.conditions[?(@.type=="Enforced")].reason', "Why it is enforced or not", priority=1
        ),
        PrinterColumn("Config", ".status.configHash", "Hash of the policy that judges calls", priority=1),
        PrinterColumn("Library", ".status.libraryVersion", "Version of the function library in Redis", priority=1),
        PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", type="date"),
    ),
)
