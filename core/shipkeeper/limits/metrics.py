"""Prometheus metrics of limiters: what was decided, how long it took, what is left, and what failed.

Nothing else in this package imports it, so that prometheus-client is needed only where metrics are asked for. Labels
are names out of policies and fixed words; subjects, executions and requests, of which there is no end, never are.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeVar, get_args
from weakref import WeakKeyDictionary

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.metrics_core import GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "the limiter's metrics need prometheus-client: install shipkeeper[metrics], or give the limiter no metrics"
    ) from error

from .failures import StoreError
from .verdict import BreakerName, LimitState, Verdict

_POLICY_LABELS: Final = ("namespace", "policy")
# From half a millisecond (Redis next door) past one second, the usual timeout, to longer timeouts.
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
# Reading what is left costs more than counting, so it is done once in so many seconds, and when Prometheus asks.
_SAMPLE_SECONDS: Final = 1.0
_COMPARED_SECONDS: Final = 60.0
_BREAKER_STATES: Final[tuple[BreakerName, ...]] = get_args(BreakerName)
_BREAKER_SEVERITY: Final = {"Closed": 0, "HalfOpen": 1, "Open": 2, "ForcedOpen": 3}
# Verdicts that do not come from a subject's counters.
_WITHOUT_USE: Final = frozenset({"store", "config"})


class LimiterMetrics:
    """Metrics for any number of limiters. All that are made for one registry share the same series."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Declare the metrics in a registry, prometheus-client's own unless another is given."""
        self._series = _series_of(registry)

    def recorder(self, namespace: str, policies: tuple[str, ...]) -> "DecisionRecorder":
        """Return what a limiter of these policies reports to."""
        return self._series.recorder(namespace, policies)


class DecisionRecorder:
    """Takes the reports of limiters that ask the same policies together."""

    def __init__(self, series: "_Series", namespace: str, policies: tuple[str, ...]) -> None:
        self._series = series
        self._namespace = namespace
        self._policies = policies
        self._durations = [series.durations.labels(namespace, policy) for policy in policies]
        self._kinds: dict[tuple[bool, str, str], _DecisionKind] = {}
        self._shadows: dict[str, list[Counter]] = {}
        self._limit_names: list[tuple[str, str]] = []
        self._latest: tuple[Verdict, float] | None = None

    def decided(self, verdict: Verdict, start: float) -> None:
        """Record a decision that was asked for at `start`, an instant of time.monotonic()."""
        now = time.monotonic()
        kind = self._kinds.get((verdict.allowed, verdict.rule, verdict.refused_by)) or self._new_kind(verdict)
        for counter in kind.counters:
            counter.inc()
        for duration in self._durations:
            duration.observe(now - start)
        for rule in verdict.shadow:
            for counter in self._shadows.get(rule) or self._new_shadow(verdict, rule):
                counter.inc()
        if kind.shows_use:
            self._latest = (verdict, now)
            if now >= kind.sample_at:
                kind.sample_at = now + _SAMPLE_SECONDS
                self._take_in(verdict, now)

    def reported(self, verdict: Verdict, circuits: Sequence[int]) -> None:
        """Record the circuits' states after a report about an admitted call: a number for each policy."""
        now = time.monotonic()
        with self._series.lock:
            for policy, subject, number in zip(self._policies, verdict.subject, circuits, strict=False):
                self._see_breaker(policy, subject, _BREAKER_STATES[number], now)

    def store_failed(self, error: StoreError) -> None:
        """Record that the store did not answer a call, or answered with an error."""
        for policy in self._policies:
            self._series.store_errors.labels(self._namespace, policy, error.failure.value).inc()

    def take_in_latest(self) -> None:
        """Read what is left from the latest decision, which may be younger than the latest sample."""
        if self._latest is not None:
            self._take_in(*self._latest)

    def _owners(self, verdict: Verdict, rule: str) -> Sequence[str]:
        """Return the policies that the rule belongs to; all, where the verdict does not tell."""
        if not rule or rule in _WITHOUT_USE:
            return self._policies
        named = {limit.policy for limit in verdict.limits if limit.name == rule}
        return [policy for policy in self._policies if policy in named] or self._policies

    def _new_kind(self, verdict: Verdict) -> "_DecisionKind":
        owners = (verdict.refused_by,) if verdict.refused_by else self._policies
        word = "allowed" if verdict.allowed else "denied"
        counters = [
            self._series.decisions.labels(self._namespace, policy, verdict.rule if policy in owners else "", word)
            for policy in self._policies
        ]
        kind = _DecisionKind(counters, shows_use=verdict.rule not in _WITHOUT_USE)
        self._kinds[verdict.allowed, verdict.rule, verdict.refused_by] = kind
        return kind

    def _new_shadow(self, verdict: Verdict, rule: str) -> list[Counter]:
        counters = [
            self._series.shadow_denials.labels(self._namespace, policy, rule) for policy in self._owners(verdict, rule)
        ]
        self._shadows[rule] = counters
        return counters

    def _take_in(self, verdict: Verdict, at: float) -> None:
        if verdict.replayed or "config" in verdict.shadow:
            return  # what was left when the request came first, or nothing: the policy has expired
        limits = verdict.limits
        names = [(limit.policy, limit.name) for limit in limits]
        if names != self._limit_names:
            # An edited policy: a rule may now belong to another one.
            self._limit_names, self._kinds, self._shadows = names, {}, {}
        with self._series.lock:
            for policy, subject in zip(self._policies, verdict.subject, strict=True):
                use = self._series.use(self._namespace, policy)
                seen = {
                    limit.name: _limit_use(limit, verdict, subject, at) for limit in limits if limit.policy == policy
                }
                use.limits = {name: _worst(use.limits.get(name), each) for name, each in seen.items()}
            for policy, subject, breaker in zip(self._policies, verdict.subject, verdict.breakers, strict=True):
                self._see_breaker(policy, subject, breaker, at)

    def _see_breaker(self, policy: str, subject: str, state: BreakerName, at: float) -> None:
        use = self._series.use(self._namespace, policy)
        if state == "Disabled":
            use.breaker = None
        else:
            use.breaker = _worst(use.breaker, _BreakerUse(subject, at, _BREAKER_SEVERITY[state], state=state))


class _DecisionKind:
    """Decisions with the same outcome by the same rule."""

    __slots__ = ("counters", "sample_at", "shows_use")

    def __init__(self, counters: list[Counter], *, shows_use: bool) -> None:
        self.counters = counters
        self.shows_use = shows_use
        self.sample_at = 0.0


@dataclass(frozen=True, slots=True)
class _Use:
    """What one decision showed of one subject."""

    subject: str
    at: float
    severity: float


@dataclass(frozen=True, slots=True)
class _LimitUse(_Use):
    amount: int
    remaining: int
    full_at: float


@dataclass(frozen=True, slots=True)
class _BreakerUse(_Use):
    state: BreakerName


U = TypeVar("U", bound=_Use)


def _limit_use(limit: LimitState, verdict: Verdict, subject: str, at: float) -> _LimitUse:
    full_at = math.inf
    if limit.resets_at is not None and verdict.judged_at is not None:
        full_at = at + (limit.resets_at - verdict.judged_at).total_seconds()
    return _LimitUse(subject, at, -limit.remaining / limit.amount, limit.amount, limit.remaining, full_at)


def _worst(kept: U | None, seen: U) -> U:
    """Return what a gauge shows: of one subject the latest, of several the worst within a minute of each other."""
    if kept is None:
        return seen
    older, newer = (kept, seen) if kept.at <= seen.at else (seen, kept)
    refilled = isinstance(older, _LimitUse) and newer.at >= older.full_at
    if older.subject == newer.subject or refilled or newer.at - older.at >= _COMPARED_SECONDS:
        return newer
    return older if older.severity > newer.severity else newer


class _PolicyUse:
    """What was last seen of one policy; replaced with each sample, so that a limit that was removed is gone."""

    def __init__(self) -> None:
        self.limits: dict[str, _LimitUse] = {}
        self.breaker: _BreakerUse | None = None


class _Series:
    """The series of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "shipkeeper_limiter_decisions",
            "Decisions by the binding rule (empty: none, or another policy's of the same call) and verdict.",
            (*_POLICY_LABELS, "limit", "verdict"),
            registry=registry,
        )
        self.shadow_denials = Counter(
            "shipkeeper_limiter_shadow_denials",
            "Decisions that a rule in Shadow mode would have denied.",
            (*_POLICY_LABELS, "limit"),
            registry=registry,
        )
        self.store_errors = Counter(
            "shipkeeper_limiter_store_errors",
            "Calls to the store that failed, by reason.",
            (*_POLICY_LABELS, "reason"),
            registry=registry,
        )
        self.durations = Histogram(
            "shipkeeper_limiter_decision_duration_seconds",
            "Time from asking to the verdict, failures of the store included.",
            _POLICY_LABELS,
            buckets=_BUCKETS,
            registry=registry,
        )
        self.lock = Lock()
        self._uses: dict[tuple[str, str], _PolicyUse] = {}
        self._recorders: dict[tuple[str, tuple[str, ...]], DecisionRecorder] = {}
        registry.register(_UseCollector(self))

    def recorder(self, namespace: str, policies: tuple[str, ...]) -> DecisionRecorder:
        """Return the one recorder of these policies."""
        with self.lock:
            key = (namespace, policies)
            if key not in self._recorders:
                self._recorders[key] = DecisionRecorder(self, namespace, policies)
            return self._recorders[key]

    def use(self, namespace: str, policy: str) -> _PolicyUse:
        """Return what was seen of a policy, to be read or changed under the lock."""
        return self._uses.setdefault((namespace, policy), _PolicyUse())

    def latest_uses(self) -> list[tuple[tuple[str, str], dict[str, _LimitUse], _BreakerUse | None]]:
        """Return what was seen of each policy, the latest decisions included."""
        with self.lock:
            recorders = list(self._recorders.values())
        for recorder in recorders:
            recorder.take_in_latest()
        with self.lock:
            return [(labels, use.limits, use.breaker) for labels, use in self._uses.items()]


class _UseCollector(Collector):
    """Gauges that are made when Prometheus asks: then a window may have ended since the last decision."""

    def __init__(self, series: _Series) -> None:
        self._series = series

    def describe(self) -> Iterable[Metric]:
        """Name the metrics."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        remaining, amount, breaker = families = self._families()
        now = time.monotonic()
        for labels, limits, circuit in self._series.latest_uses():
            for name, use in limits.items():
                remaining.add_metric((*labels, name), use.amount if now >= use.full_at else use.remaining)
                amount.add_metric((*labels, name), use.amount)
            if circuit is not None:
                for state in _BREAKER_SEVERITY:
                    breaker.add_metric((*labels, state), float(state == circuit.state))
        return families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "shipkeeper_limiter_remaining",
                "Units left after the latest decision; of several subjects, the fewest that were seen within a minute.",
                labels=(*_POLICY_LABELS, "limit"),
            ),
            GaugeMetricFamily(
                "shipkeeper_limiter_amount", "Units that the limit allows.", labels=(*_POLICY_LABELS, "limit")
            ),
            GaugeMetricFamily(
                "shipkeeper_limiter_breaker_state",
                "1 for the state of the circuit breaker, 0 for the others; of several subjects the worst.",
                labels=(*_POLICY_LABELS, "state"),
            ),
        )


_series_lock: Final = Lock()
_series: Final["WeakKeyDictionary[CollectorRegistry, _Series]"] = WeakKeyDictionary()


def _series_of(registry: CollectorRegistry) -> _Series:
    with _series_lock:
        if registry not in _series:
            _series[registry] = _Series(registry)
        return _series[registry]
