"""The operator's own HTTP server: is it alive, is it ready, what has it done. kopf's probe proves none of that."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from shipkeeper_operator.metrics import Metrics

LONGEST_LOOP_LAG_SECONDS = 10.0
_TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Verdict:
    """Whether something is well, and what each check says."""

    ok: bool
    checks: Mapping[str, str]


class LoopMonitor:
    """Measures how late the event loop comes round: what blocks it blocks every watch and every write."""

    def __init__(self, metrics: Metrics) -> None:
        """Start unmeasured."""
        self._metrics = metrics
        self.lag_seconds = 0.0

    async def run(self) -> None:
        """Tick forever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self.lag_seconds = max(0.0, loop.time() - due)
            self._metrics.loop_lag.set(self.lag_seconds)


class HealthServer:
    """Serves /healthz, /readyz and /metrics."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        live: Callable[[], Verdict],
        ready: Callable[[], Verdict],
        scrape: Callable[[], bytes],
    ) -> None:
        """Take what to answer; nothing is served yet."""
        self._host, self._port = host, port
        self._live, self._ready, self._scrape = live, ready, scrape
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that is served; of use where port 0 asked for a free one."""
        if self._runner is None:
            raise RuntimeError("the health server is not running")
        port: int = self._runner.addresses[0][1]
        return port

    async def start(self) -> None:
        """Begin to serve."""
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def stop(self) -> None:
        """Serve no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self._live())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._scrape(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _answer(verdict: Verdict) -> web.Response:
    return web.json_response({"ok": verdict.ok, "checks": dict(verdict.checks)}, status=200 if verdict.ok else 503)
