"""What a policy should decide, worked out the slow way: from wall clocks and a list of charged calls.

It shares only the models with the compiler and the Lua library: windows are found on the wall clock, active hours are
looked up there, and every count is a sum over the calls that were admitted. A call that was given back leaves the list.

Edits follow docs/limits.md: a limit's name is its counter. What one edit forgets is forgotten with the next call that
writes; a reservation made under other definitions stays charged.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from shipkeeper.resources.circuitbreaker import CircuitBreaker
from shipkeeper.resources.ratelimitpolicy import Limit, RateLimitPolicySpec
from shipkeeper.resources.schedule import milliseconds
from support.circuit_oracle import Circuit, Permit
from support.wall_clock import DAY, HOUR, MINUTE, SECOND, active_edges, calendar_window, is_open, next_opening

ROLLING_STEPS = 16
_LENGTHS = {"Second": SECOND, "Minute": MINUTE, "Hour": HOUR, "Day": DAY, "Week": 7 * DAY}


@dataclass(eq=False)
class Charge:
    """One call that was let through."""

    at: int
    cost: int
    execution: str | None
    lease_end: int | None = None
    """Until when it is only reserved; None: it stays."""
    permit: Permit | None = None
    """What its report must name; None where no circuit waits for one."""

    def is_held(self, now: int) -> bool:
        """Whether it can still be committed or cancelled."""
        return self.lease_end is not None and now < self.lease_end

    def counts(self, now: int) -> bool:
        """Whether its units are still taken."""
        return self.lease_end is None or now < self.lease_end


@dataclass(frozen=True)
class Refusal:
    """One rule that does not admit the call."""

    rule: str
    retry_at: int | None
    """From when it would; None: never."""
    shadow: bool


@dataclass(frozen=True)
class Expected:
    """What the library should answer."""

    refusals: tuple[Refusal, ...]
    retry_at: int | None
    """None when allowed or never."""

    @property
    def denying(self) -> tuple[Refusal, ...]:
        """The refusals that are not Shadow."""
        return tuple(refusal for refusal in self.refusals if not refusal.shadow)

    @property
    def allowed(self) -> bool:
        """Whether the call passes."""
        return not self.denying

    @property
    def binding(self) -> frozenset[str]:
        """The rules that free last; the verdict names one of them."""
        latest = _latest(refusal.retry_at for refusal in self.denying)
        return frozenset(refusal.rule for refusal in self.denying if refusal.retry_at == latest)

    @property
    def shadow(self) -> tuple[str, ...]:
        """The Shadow rules that would have denied, in order."""
        return tuple(sorted(refusal.rule for refusal in self.refusals if refusal.shadow))


def _latest(instants: Iterable[int | None]) -> int | None:
    known = list(instants)
    return None if None in known or not known else max(each for each in known if each is not None)


@dataclass
class Counter:
    """What one limit counts."""

    begin: int | None = None
    """Start of the window that it counts; a rolling one has none."""
    charges: list[Charge] = field(default_factory=list)
    full_until: int = 0
    """Of a burst: when all its units are back, in microseconds."""

    def used(self, now: int) -> int:
        """Return the sum over the charges that still count."""
        return sum(charge.cost for charge in self.charges if charge.counts(now))


@dataclass
class Oracle:
    """Decides for one subject of one policy."""

    spec: RateLimitPolicySpec
    counters: dict[Hashable, Counter] = field(default_factory=dict)
    executions: dict[str | None, dict[str, list[Charge]]] = field(default_factory=dict)
    next_call: int = 0
    circuit: Circuit = field(default_factory=Circuit)
    charges: list[Charge] = field(default_factory=list)
    """Every call that was ever admitted and not given back."""
    _definitions: Hashable = None

    # What is judged

    def refusals(self, now: int, cost: int, execution: str | None) -> list[Refusal]:
        """Return every rule that refuses, Shadow or not."""
        if self.spec.mode == "Off":
            return []
        found: list[Refusal] = []
        for limit in self._limits():
            found += self._refusals_of(limit, now, cost, execution)
        spacing, hours, breaker = self.spec.spacing, self.spec.active_hours, self.spec.circuit_breaker
        if spacing is not None and spacing.mode != "Off" and now < self.next_call:
            found.append(self._refusal("spacing", self.next_call, spacing.mode))
        if breaker is not None and breaker.override != "Disabled":
            found += [
                self._refusal("circuitBreaker", at, "Shadow" if breaker.override == "MetricsOnly" else "Enforce")
                for at in self.circuit.refuses(breaker, now)
            ]
        if hours is not None and hours.mode != "Off" and not is_open(hours, self.spec.time_zone, now):
            opening = next_opening(hours, self.spec.time_zone, now)
            found.append(self._refusal("activeHours", opening, hours.mode))
        return found

    def remaining(self, now: int, execution: str | None) -> dict[str, int]:
        """Return the units left per limit."""
        return {limit.name: max(0, limit.amount - self.used(limit, now, execution)) for limit in self._limits()}

    def breaker_state(self) -> str:
        """Return the circuit's state as a verdict names it."""
        breaker = self.spec.circuit_breaker
        if breaker is None or breaker.override == "Disabled":
            return "Disabled"
        return "ForcedOpen" if breaker.override == "ForcedOpen" else self.circuit.state

    def opening(self, now: int) -> int | None:
        """Return the first instant at or after this one at which active hours deny nothing."""
        hours = self.spec.active_hours
        if self.spec.mode != "Enforce" or hours is None or hours.mode != "Enforce":
            return now
        return next_opening(hours, self.spec.time_zone, now)

    def edges(self, now: int) -> set[int]:
        """Return instants at which a decision may change."""
        found = {self.next_call, self.circuit.open_until, *self.circuit.probes.values()}
        found |= {charge.lease_end for charge in self.charges if charge.lease_end is not None}
        for limit in self._limits():
            if limit.period == "Execution":
                continue
            if limit.alignment == "Calendar":
                found.add(calendar_window(limit, self.spec.time_zone, now)[1])
            elif limit.alignment == "FirstUse":
                found.add((self._counter(_identity(limit)).begin or now) + _period(limit))
            else:
                found.add((now // rolling_step(limit) + 1) * rolling_step(limit))
        if self.spec.active_hours is not None:
            found |= active_edges(self.spec.active_hours, self.spec.time_zone, now)
        return found

    def _limits(self) -> list[Limit]:
        return [limit for limit in self.spec.limits if limit.mode != "Off"]

    def _refusal(self, rule: str, retry_at: int | None, mode: str) -> Refusal:
        return Refusal(rule, retry_at, mode == "Shadow" or self.spec.mode == "Shadow")

    def _refusals_of(self, limit: Limit, now: int, cost: int, execution: str | None) -> list[Refusal]:
        if cost > limit.amount or (limit.burst is not None and cost > limit.burst):
            return [self._refusal(limit.name, None, limit.mode)]
        found = []
        if self.used(limit, now, execution) + cost > limit.amount:
            found.append(self._refusal(limit.name, self._fits_from(limit, now, cost), limit.mode))
        if limit.burst is not None:
            full_until = self._counter(_burst_identity(limit)).full_until
            ready = max(full_until, now * 1000) + (cost - limit.burst) * _interval(limit)
            if ready > now * 1000:
                found.append(self._refusal(limit.name, -(-ready // 1000), limit.mode))
        return found

    # What is counted

    def used(self, limit: Limit, now: int, execution: str | None) -> int:
        """Return the units that a limit counts now."""
        if limit.period == "Execution":
            counted = self.executions.get(execution, {}).get(limit.name, [])
            return sum(charge.cost for charge in counted if charge.counts(self._lease_clock(now)))
        counter = self._counter(_identity(limit))
        if limit.alignment == "Rolling":
            return sum(charge.cost for charge in self._rolling(limit, now, now))
        return counter.used(self._lease_clock(now)) if self._runs(limit, counter, now) else 0

    def _rolling(self, limit: Limit, now: int, instant: int) -> list[Charge]:
        """Return the charges known now that a rolling limit will count at an instant."""
        step = rolling_step(limit)
        counter, clock = self._counter(_identity(limit)), self._lease_clock(now)
        return [
            charge
            for charge in counter.charges
            if charge.counts(clock) and charge.at // step + ROLLING_STEPS >= instant // step
        ]

    def _runs(self, limit: Limit, counter: Counter, now: int) -> bool:
        """Whether the window that a counter began is the current one, by the limit's present definition."""
        if counter.begin is None:
            return False
        if limit.alignment == "Calendar":
            return counter.begin >= calendar_window(limit, self.spec.time_zone, now)[0]
        return now < counter.begin + _period(limit) and counter.used(self._lease_clock(now)) > 0

    def _fits_from(self, limit: Limit, now: int, cost: int) -> int | None:
        if limit.period == "Execution":
            return None
        if limit.alignment == "Calendar":
            return calendar_window(limit, self.spec.time_zone, now)[1]
        if limit.alignment == "FirstUse":
            return (self._counter(_identity(limit)).begin or 0) + _period(limit)
        step = rolling_step(limit)
        free = now
        while sum(charge.cost for charge in self._rolling(limit, now, free)) > limit.amount - cost:
            free = (free // step + 1) * step
        return free

    def _counter(self, identity: Hashable) -> Counter:
        return self.counters.get(identity, Counter())

    def _lease_clock(self, now: int) -> int:
        """Return the instant at which leases are judged: none ends where other definitions hold by now."""
        return now if self._definitions == self._present_definitions() else 0

    # What changes

    def charge(
        self, now: int, cost: int, execution: str | None, *, next_call: int = 0, lease_end: int | None = None
    ) -> Charge | None:
        """Charge a call, with the pause that the server drew; None when the policy is Off."""
        self.look_in(now)
        if self.spec.mode == "Off":
            return None
        self._write(now)
        charge = Charge(now, cost, execution, lease_end)
        self.charges.append(charge)
        for limit in self._limits():
            self._charge_limit(limit, charge)
        self._remember_execution(execution)
        if self.spec.spacing is not None and self.spec.spacing.mode != "Off":
            self.next_call = next_call
        breaker = self.spec.circuit_breaker
        if breaker is not None and breaker.override != "Disabled":
            charge.permit = self.circuit.admits(breaker, now)
        return charge

    def _charge_limit(self, limit: Limit, charge: Charge) -> None:
        if limit.period == "Execution":
            self.executions.setdefault(charge.execution, {}).setdefault(limit.name, []).append(charge)
            return
        counter = self.counters.setdefault(_identity(limit), Counter())
        if limit.alignment != "Rolling" and not self._runs(limit, counter, charge.at):
            counter.begin = charge.at
            if limit.alignment == "Calendar":
                counter.begin = calendar_window(limit, self.spec.time_zone, charge.at)[0]
        counter.charges.append(charge)
        if limit.burst is not None:
            burst = self.counters.setdefault(_burst_identity(limit), Counter())
            now, interval = charge.at * 1000, _interval(limit)
            burst.full_until = min(max(burst.full_until, now) + charge.cost * interval, now + limit.burst * interval)

    def _remember_execution(self, execution: str | None) -> None:
        names = {limit.name for limit in self._limits() if limit.period == "Execution"}
        if names and execution in self.executions:
            counts = self.executions[execution]
            self.executions[execution] = {name: counts[name] for name in counts if name in names}

    def look_in(self, now: int) -> None:
        """Do what every call but a look does, a denied one too: end for good the leases that ran out."""
        ended = any(not charge.counts(now) for charge in self.charges)
        if ended and self._definitions == self._present_definitions():
            self._write(now)

    def settle(self, charge: Charge, now: int, *, keep: bool) -> bool:
        """Commit or cancel a reservation; False when it was settled before, or its units are back, or stay for ever."""
        if not charge.is_held(now) or self._definitions != self._present_definitions():
            return False
        self._write(now)
        charge.lease_end = None
        if not keep:
            self.charges.remove(charge)
            for counted in self._counted_lists():
                if charge in counted:
                    counted.remove(charge)
            if self.spec.mode != "Off":
                self._remember_execution(charge.execution)
        return True

    def _counted_lists(self) -> list[list[Charge]]:
        lists = [counter.charges for counter in self.counters.values()]
        return lists + [counted for counts in self.executions.values() for counted in counts.values()]

    def report(self, charge: Charge, outcome: str, now: int) -> bool:
        """Take in how a call went, and return whether that counted."""
        breaker = self.spec.circuit_breaker
        if breaker is None or breaker.override == "Disabled" or charge.permit is None:
            return False
        counted = self.circuit.takes(breaker, charge.permit, outcome, now)
        if counted:
            self._write(now)
        return counted

    def _write(self, now: int) -> None:
        """Do what every call that writes does: end leases, forget what the policy does not name any more."""
        present = self._present_definitions()
        if self._definitions != present:
            for charge in self.charges:
                charge.lease_end = None
            self._definitions = present
        self._bring_to(now)
        kept = {_identity(limit) for limit in self._limits()}
        kept |= {_burst_identity(limit) for limit in self._limits() if limit.burst is not None}
        self.counters = {identity: counter for identity, counter in self.counters.items() if identity in kept}
        if self.spec.spacing is None or self.spec.spacing.mode == "Off":
            self.next_call = 0
        if self.spec.circuit_breaker is None or self.spec.circuit_breaker.override == "Disabled":
            self.circuit = Circuit()

    def _bring_to(self, now: int) -> None:
        """Forget ended leases and ended windows."""
        for counted in (self.charges, *self._counted_lists()):
            counted[:] = [charge for charge in counted if charge.counts(now)]
        for limit in self._limits():
            counter = self._counter(_identity(limit))
            if limit.period != "Execution" and limit.alignment != "Rolling" and not self._runs(limit, counter, now):
                counter.charges, counter.begin = [], None

    def _present_definitions(self) -> Hashable:
        """Return what makes a reservation's charge known: which limits count, in which order, over which windows."""
        limits = [(limit.mode == "Off", _definition(limit, self.spec.time_zone)) for limit in self.spec.limits]
        spacing, breaker = self.spec.spacing, self.spec.circuit_breaker
        return (
            tuple(definition for off, definition in limits if not off),
            spacing is not None and spacing.mode != "Off",
            _rate_window(breaker) if breaker is not None and breaker.override != "Disabled" else None,
        )


def _rate_window(breaker: CircuitBreaker) -> Hashable:
    if breaker.window is None:
        return "none"
    return breaker.window.duration or "size"


def _definition(limit: Limit, zone: str) -> Hashable:
    if limit.period == "Execution":
        return limit.name, "Execution"
    if limit.alignment == "Calendar":
        return limit.name, limit.period, limit.week_start, limit.reset_at, zone
    return limit.name, limit.alignment, _period(limit), limit.burst is not None and _interval(limit)


def _identity(limit: Limit) -> Hashable:
    """Return what a limit's count is known by; a rolling one also by its period, whose steps mean nothing to others."""
    return ("rolling", limit.name, _period(limit)) if limit.alignment == "Rolling" else ("window", limit.name)


def _burst_identity(limit: Limit) -> Hashable:
    return "burst", limit.name, _interval(limit)


def _period(limit: Limit) -> int:
    return _LENGTHS.get(limit.period) or milliseconds(limit.period)


def _interval(limit: Limit) -> int:
    """Return the microseconds in which one unit of a burst comes back."""
    return -(-_period(limit) * 1000 // limit.amount)


def rolling_step(limit: Limit) -> int:
    """Return the milliseconds of one step of a rolling limit."""
    return -(-_period(limit) // ROLLING_STEPS)


def decide(oracles: Sequence[Oracle], now: int, cost: int, execution: str | None) -> Expected:
    """Return what acquire should answer when it asks these together; nothing is charged."""
    refusals = [refusal for oracle in oracles for refusal in oracle.refusals(now, cost, execution)]
    denying = [refusal.retry_at for refusal in refusals if not refusal.shadow]
    retry = _latest(denying)
    while retry is not None:
        openings = [oracle.opening(retry) for oracle in oracles]
        later = _latest(openings)
        if later == retry:
            break
        retry = later
    return Expected(tuple(refusals), retry)


def overdrawn(spec: RateLimitPolicySpec, charges: Sequence[Charge]) -> dict[str, int]:
    """Return the enforced limits of an unedited policy of which some window holds more than the amount, and how much.

    Not by the oracle's counters but straight from the definition: a rolling limit by every span of its exact period.
    """
    most = {
        limit.name: max([0, *_units_of_windows(limit, spec.time_zone, charges)])
        for limit in spec.limits
        if limit.mode == "Enforce" and spec.mode == "Enforce"
    }
    return {limit.name: most[limit.name] for limit in spec.limits if most.get(limit.name, 0) > limit.amount}


def _units_of_windows(limit: Limit, zone: str, charges: Sequence[Charge]) -> Iterable[int]:
    if limit.alignment == "Rolling":
        spans = [range(charge.at, charge.at + _period(limit)) for charge in charges]
        return [sum(charge.cost for charge in charges if charge.at in span) for span in spans]
    units: dict[Hashable, int] = {}
    begin: int | None = None
    for charge in charges:
        window: Hashable = charge.execution
        if limit.period != "Execution" and limit.alignment == "Calendar":
            window = calendar_window(limit, zone, charge.at)
        elif limit.alignment == "FirstUse":
            begin = charge.at if begin is None or charge.at >= begin + _period(limit) else begin
            window = begin
        units[window] = units.get(window, 0) + charge.cost
    return units.values()
