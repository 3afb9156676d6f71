"""What Prometheus is told. Every metric of the operator is declared here."""

from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

# The time at which each series began doubles what is scraped and tells nobody anything.
disable_created_metrics()

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one operator process, in a registry of their own."""

    def __init__(self) -> None:
        """Declare them."""
        self.registry = CollectorRegistry()

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"shipkeeper_{name}", help_text, labels, registry=self.registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"shipkeeper_{name}", help_text, labels, registry=self.registry)

        def histogram(name: str, help_text: str, *labels: str) -> Histogram:
            return Histogram(f"shipkeeper_{name}", help_text, labels, buckets=_FAST, registry=self.registry)

        self.reconciles = counter("reconcile_total", "Passes over a resource, by result.", "controller", "result")
        self.errors = counter("reconcile_errors_total", "Passes that failed, by reason.", "controller", "reason")
        self.duration = histogram("reconcile_duration_seconds", "Time of one pass.", "controller")
        self.active = gauge("reconcile_active_workers", "Workers that are in a pass now.", "controller")
        self.depth = gauge("workqueue_depth", "Resources that wait for a worker.", "controller")
        self.adds = counter("workqueue_adds_total", "Resources added to the queue.", "controller")
        self.latency = histogram("workqueue_latency_seconds", "Time from being added to being taken.", "controller")
        self.retries = counter("workqueue_retries_total", "Resources re-added because of a failure.", "controller")
        self.resources = gauge("resources", "Resources by the state of their Ready condition.", "kind", "state")
        self.requests = counter("api_requests_total", "Requests to the API server.", "verb", "kind", "code")
        self.request_duration = histogram("api_request_duration_seconds", "Time of a request.", "verb")
        self.watch_events = counter("watch_events_total", "Watch events received.", "kind", "type")
        self.lists = counter("watch_lists_total", "Lists compared with the watch cache.", "kind", "result")
        self.missed = counter("watch_missed_total", "Changes that a list showed and no watch event had told.", "kind")
        self.cached = gauge("cache_objects", "Objects in the watch cache.", "kind")
        self.events = counter("events_emitted_total", "Kubernetes Events, by type and outcome.", "type", "result")
        self.leader = gauge("leader", "1 while this replica leads.")
        self.ready = gauge("ready", "1 while /readyz says so.")
        self.loop_lag = gauge("event_loop_lag_seconds", "How late the event loop last came round.")
        gauge("build_info", "1, with the version as label.", "version").labels(version("shipkeeper")).set(1)

    def requested(self, verb: str, kind: str, code: str, seconds: float) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, kind, code).inc()
        self.request_duration.labels(verb).observe(seconds)

    def queue(self, controller: str) -> "QueueMetrics":
        """Return the observer of one controller's queue."""
        return QueueMetrics(self, controller)

    def count_resources(self, kind: str, states: Iterable[str]) -> None:
        """Set the number of resources of a kind in each state."""
        counts = {"Ready": 0, "Reconciling": 0, "Stalled": 0, "Unknown": 0}
        for state in states:
            counts[state] += 1
        for state, count in counts.items():
            self.resources.labels(kind, state).set(count)

    def exposition(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)


class QueueMetrics:
    """A work queue's reports as metrics."""

    def __init__(self, metrics: Metrics, controller: str) -> None:
        """Bind the controller's name."""
        self._depth = metrics.depth.labels(controller)
        self._adds = metrics.adds.labels(controller)
        self._latency = metrics.latency.labels(controller)
        self._retries = metrics.retries.labels(controller)
        self._duration = metrics.duration.labels(controller)
        self._active = metrics.active.labels(controller)

    def added(self, depth: int) -> None:
        """Report that a key joined the ready keys."""
        self._adds.inc()
        self._depth.set(depth)

    def taken(self, depth: int, waited_seconds: float) -> None:
        """Report that a worker took a key."""
        self._depth.set(depth)
        self._latency.observe(waited_seconds)
        self._active.inc()

    def finished(self, worked_seconds: float) -> None:
        """Report that a worker was done with a key."""
        self._active.dec()
        self._duration.observe(worked_seconds)

    def retried(self) -> None:
        """Report that a key comes back because it failed."""
        self._retries.inc()
