"""The application's metrics, and the ASGI middleware that counts requests."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BREAKER_STATES = {"Closed": 0, "Open": 1, "HalfOpen": 2}
CAMPAIGN_BUCKETS = (1, 10, 60, 300, 600, 1200, 1800, 2700, 3600, 5400)


class Metrics:
    """One registry and its metrics; each application object has its own, so that two may live in one process."""

    def __init__(self) -> None:
        """Register every metric."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "http_requests_total", "Requests answered.", ("method", "endpoint", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "http_request_duration_seconds", "Time to answer.", ("method", "endpoint"), registry=self.registry
        )
        self.requests_in_progress = Gauge(
            "http_requests_in_progress", "Requests that are being answered.", registry=self.registry
        )
        self.messages_sent = Counter(
            "birthday_messages_sent_total", "Birthday messages, by outcome.", ("status",), registry=self.registry
        )
        self.rate_limit_hits = Counter(
            "rate_limit_hits_total",
            "Questions asked of the rate limit policy, by campaign and answer.",
            ("endpoint", "result"),
            registry=self.registry,
        )
        self.quota_remaining = Gauge(
            "rate_limit_quota_remaining",
            "Units that the policy's tightest limit still allows.",
            ("operation",),
            registry=self.registry,
        )
        self.breaker_state = Gauge(
            "circuit_breaker_state", "0 closed, 1 open, 2 half-open.", ("service",), registry=self.registry
        )
        self.database_errors = Counter(
            "database_errors_total",
            "Failures of the database, as seen by requests and campaigns.",
            registry=self.registry,
        )
        self.redis_errors = Counter("redis_connection_errors_total", "Failures to reach Redis.", registry=self.registry)
        self.campaign_seconds = Histogram(
            "birthday_campaign_duration_seconds",
            "How long a birthday campaign ran.",
            buckets=CAMPAIGN_BUCKETS,
            registry=self.registry,
        )


class RequestMetrics:
    """ASGI middleware: counts and times requests by the route's template, so that ids in paths make no series."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        """Wrap an application."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and record how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def recording_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        with self._metrics.requests_in_progress.track_inprogress():
            try:
                await self._app(scope, receive, recording_send)
            finally:
                endpoint = getattr(scope.get("route"), "path", "unmatched")
                self._metrics.requests.labels(scope["method"], endpoint, status).inc()
                self._metrics.request_seconds.labels(scope["method"], endpoint).observe(time.perf_counter() - began)
