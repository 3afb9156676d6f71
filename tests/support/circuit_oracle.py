"""What a circuit breaker should do, kept as plain lists: the part of the limiter's oracle that reports change."""

from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from shipkeeper.resources.circuitbreaker import CircuitBreaker
from shipkeeper.resources.schedule import milliseconds

_PARTS = 10
_rounds = count(1)
_probes = count(1)


@dataclass(frozen=True)
class Permit:
    """In which round of the circuit a call was admitted, and as which probe."""

    round: int
    probe: int | None = None


@dataclass
class Circuit:
    """The breaker of one subject. Round 0 is that of a circuit that never opened."""

    state: Literal["Closed", "Open", "HalfOpen"] = "Closed"
    round: int = 0
    open_until: int = 0
    openings: int = 0
    failures: int = 0
    successes: int = 0
    results: list[tuple[int, bool]] = field(default_factory=list)
    """Of the calls in the window: the part of time they fell in, and whether they failed."""
    window: tuple[str, int] | None = None
    """By what the results are kept: a change begins them anew."""
    probes: dict[int, int] = field(default_factory=dict)
    """Probes under way, and when they are given up."""

    def refuses(self, breaker: CircuitBreaker, now: int) -> list[int | None]:
        """Return when a call would be admitted (None: time does not help), in a list; an empty one admits it now."""
        if breaker.override == "ForcedOpen":
            return [None]
        if self.state == "Open" and now < self.open_until:
            return [self.open_until]
        if self.state == "HalfOpen":
            ends = sorted(end for end in self.probes.values() if end > now)
            if len(ends) >= breaker.half_open.permits:
                return [ends[len(ends) - breaker.half_open.permits]]
        return []

    def admits(self, breaker: CircuitBreaker, now: int) -> Permit | None:
        """Let a call pass and return what its report must name."""
        if breaker.override == "ForcedOpen":
            return None
        if self.state == "Open" and now >= self.open_until:
            self._enter("HalfOpen")
        self._give_up_probes(now)
        if self.state != "HalfOpen" or len(self.probes) >= breaker.half_open.permits:
            return Permit(self.round)
        probe = next(_probes)
        self.probes[probe] = now + milliseconds(breaker.half_open.permit_timeout)
        return Permit(self.round, probe)

    def takes(self, breaker: CircuitBreaker, permit: Permit, outcome: str, now: int) -> bool:
        """Take in a result; False when it came too late to count."""
        if permit.round != self.round or self.state == "Open":
            return False
        if self.state == "HalfOpen":
            return self._takes_probe(breaker, permit, outcome, now)
        if outcome == "Released":
            return True
        self.failures = self.failures + 1 if outcome == "Failure" else 0
        if self._should_open(breaker, outcome == "Failure", now):
            self._open(breaker, now)
        return True

    def _takes_probe(self, breaker: CircuitBreaker, permit: Permit, outcome: str, now: int) -> bool:
        self._give_up_probes(now)
        if permit.probe not in self.probes:
            return False
        del self.probes[permit.probe]
        if outcome == "Failure":
            self._open(breaker, now)
        elif outcome == "Success":
            self.successes += 1
            if self.successes >= breaker.half_open.success_threshold:
                self._enter("Closed")
                self.openings = 0
        return True

    def _give_up_probes(self, now: int) -> None:
        self.probes = {probe: end for probe, end in self.probes.items() if end > now}

    def _should_open(self, breaker: CircuitBreaker, failed: bool, now: int) -> bool:
        if breaker.window is not None and self._rate_is_reached(breaker, failed, now):
            return True
        return breaker.consecutive_failures is not None and self.failures >= breaker.consecutive_failures

    def _rate_is_reached(self, breaker: CircuitBreaker, failed: bool, now: int) -> bool:
        assert breaker.window is not None
        size, duration = breaker.window.size, breaker.window.duration
        length = milliseconds(duration) if duration is not None else 0
        window = ("duration", length) if duration is not None else ("size", 0)
        if self.window != window:
            self.results, self.window = [], window
        part = max([now * _PARTS // length if length else 0, *(part for part, _ in self.results)])
        self.results = [*(each for each in self.results if each[0] > part - _PARTS), (part, failed)]
        if size is not None:
            self.results = self.results[-size:]
        failures = sum(failed for _, failed in self.results)
        if breaker.failure_rate_percent is None or len(self.results) < breaker.window.minimum_calls:
            return False
        return failures * 100 >= breaker.failure_rate_percent * len(self.results)

    def _open(self, breaker: CircuitBreaker, now: int) -> None:
        self._enter("Open")
        self.openings += 1
        initial, longest = milliseconds(breaker.open_time.initial), milliseconds(breaker.open_time.max)
        self.open_until = now + min(longest, initial * breaker.open_time.multiplier ** (self.openings - 1))

    def _enter(self, state: Literal["Closed", "Open", "HalfOpen"]) -> None:
        self.state, self.round = state, next(_rounds)
        self.failures, self.successes, self.results, self.probes = 0, 0, [], {}
