"""ASGI middleware: each HTTP request is a call under a policy, and every answer says how much is left.

Headers are those of the IETF draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers-10), a
refusal is a problem document (RFC 9457) of its type quota-exceeded.
"""

import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .client import AsyncLimiter
from .verdict import Verdict

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

_QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
_TEMPORARY: Final = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
# The client did nothing wrong there: it is we who cannot serve.
_OURS: Final = frozenset({"circuitBreaker", "store", "config"})


def client_address(scope: Scope) -> str:
    """Return the caller's address, as the server sees it: the subject where no better one is given."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


class RateLimitMiddleware:
    """Admits requests under a policy, refuses the others with 429 (or 503), and reports results to the breaker."""

    def __init__(
        self,
        app: App,
        *,
        limiter: AsyncLimiter,
        subject: Callable[[Scope], str] = client_address,
        applies: Callable[[Scope], bool] = lambda scope: True,
    ) -> None:
        """Wrap an application.

        `subject` says who is limited; `applies` which requests are (leave health probes out).
        """
        self._app = app
        self._limiter = limiter
        self._subject = subject
        self._applies = applies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or not self._applies(scope):
            await self._app(scope, receive, send)
            return
        verdict = await self._limiter.acquire(self._subject(scope))
        if not verdict.allowed:
            await _refuse(verdict, send)
            return
        await self._serve(verdict, scope, receive, send)

    async def _serve(self, verdict: Verdict, scope: Scope, receive: Receive, send: Send) -> None:
        headers, start, status = rate_limit_headers(verdict), time.monotonic(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            # An exception leaves the status at 500: a failure like one that was answered.
            spent = timedelta(seconds=time.monotonic() - start)
            await self._limiter.report(verdict, "Success" if status < 500 else "Failure", duration=spent)


def rate_limit_headers(verdict: Verdict) -> list[Header]:
    """Return RateLimit-Policy, RateLimit and, for a refusal that time mends, Retry-After."""
    headers, now = [], verdict.judged_at or datetime.now(UTC)
    policies = ", ".join(f'"{limit.name}";q={limit.amount}' for limit in verdict.limits)
    states = []
    for limit in verdict.limits:
        reset = f";t={_whole_seconds(limit.resets_at - now)}" if limit.resets_at is not None else ""
        states.append(f'"{limit.name}";r={limit.remaining}{reset}')
    if states:
        headers.append((b"ratelimit-policy", policies.encode()))
        headers.append((b"ratelimit", ", ".join(states).encode()))
    if not verdict.allowed and verdict.retry_after is not None:
        headers.append((b"retry-after", str(_whole_seconds(verdict.retry_after)).encode()))
    return headers


def _whole_seconds(span: timedelta) -> int:
    """Round up: who waits so long is not too early."""
    return max(0, math.ceil(span.total_seconds()))


async def _refuse(verdict: Verdict, send: Send) -> None:
    status = 503 if verdict.rule in _OURS else 429
    problem: dict[str, Any] = {
        "type": _TEMPORARY if status == 503 else _QUOTA_EXCEEDED,
        "title": "The service cannot be used now" if status == 503 else "Too many requests",
        "status": status,
        "detail": f"Denied by {verdict.rule}: {verdict.reason}.",
        "violated-policies": [verdict.rule],
    }
    body = json.dumps(problem).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *rate_limit_headers(verdict),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
