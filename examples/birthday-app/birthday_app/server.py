"""uvicorn with a drain: on SIGTERM the campaign ends between two contacts while the probes are still answered.

uvicorn alone would close its sockets at once: readiness would not turn false, it would vanish, and a campaign in the
background would be cut off.
"""

import asyncio
import logging
from types import FrameType

import uvicorn

from birthday_app.app import create_app
from birthday_app.services import Services

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """Serves until a signal comes, drains, then ends; a second signal ends at once."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        """Take what must be drained."""
        super().__init__(config)
        self._services = services
        self._drain: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain. Called by the interpreter between two instructions of the main thread."""
        if self._services.draining:
            self.force_exit = self.should_exit = True
            return
        self._services.draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        log.info("draining")
        self._drain = self._loop.create_task(self._drain_then_exit())

    async def _drain_then_exit(self) -> None:
        try:
            await self._services.drain()
        finally:
            self.should_exit = True


async def serve(services: Services, *, port: int) -> None:
    """Serve on all addresses until a signal has come and the drain is done."""
    config = uvicorn.Config(
        create_app(services),
        host="0.0.0.0",  # noqa: S104  The pod's network is its own.
        port=port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=20,
    )
    await DrainingServer(config, services).serve()
