"""Puts the application together."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from birthday_app import VERSION
from birthday_app.api import campaigns, probes, records
from birthday_app.database import DATABASE_FAILURES
from birthday_app.metrics import RequestMetrics
from birthday_app.services import Services

log = logging.getLogger(__name__)


def create_app(services: Services) -> FastAPI:
    """Return the ASGI application; its end closes the services."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await services.close()

    app = FastAPI(title="Birthday messages", version=VERSION, lifespan=lifespan)
    app.state.services = services
    app.add_middleware(RequestMetrics, metrics=services.metrics)
    for failure in DATABASE_FAILURES:
        app.add_exception_handler(failure, _database_failed)
    for module in (probes, campaigns, records):
        app.include_router(module.router)
    return app


async def _database_failed(request: Request, failure: Exception) -> JSONResponse:
    """Answer 503: the caller may try again. The failure goes to the log, not to the caller."""
    services: Services = request.app.state.services
    services.metrics.database_errors.inc()
    log.error("the database failed", exc_info=failure, extra={"path": request.url.path})
    return JSONResponse({"detail": "the database does not answer; try again"}, status_code=503)
