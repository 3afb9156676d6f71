"""What the platform asks: alive, ready, and the metrics."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Response, status
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from birthday_app import VERSION
from birthday_app.services import ServicesOfRequest

router = APIRouter(tags=["platform"])


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process lives; nothing else is asked, so that a failing dependency restarts nothing."""
    return {"status": "healthy", "timestamp": _timestamp(), "version": VERSION}


@router.get("/ready")
async def ready(services: ServicesOfRequest, response: Response) -> dict[str, Any]:
    """Say whether requests can be served: the database is needed, Redis only for campaigns."""
    database = await services.database_answers()
    redis = await services.redis_answers()
    is_ready = database and not services.draining
    if not is_ready:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return {
        "status": "ready" if is_ready else "draining" if services.draining else "not_ready",
        "database": "ok" if database else "unavailable",
        "redis": "ok" if redis else "unavailable",
        "dependencies": ["database", "redis"],
        "timestamp": _timestamp(),
        "version": VERSION,
    }


@router.get("/metrics")
async def metrics(services: ServicesOfRequest) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)
