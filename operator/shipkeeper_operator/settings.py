"""What the process is told from outside: environment variables, read once, checked, with a clear refusal."""

import os
import socket
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PREFIX = "SHIPKEEPER_"


class SettingsError(Exception):
    """An environment variable has a value that cannot be used; the text names it and what is expected."""


def _words(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _default_identity() -> str:
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


class Settings(BaseModel):
    """The settings of one operator process; each is read from SHIPKEEPER_<NAME>."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    namespace: str = Field(default="shipkeeper-system", min_length=1)
    """Where the operator itself lives: its Lease is there."""
    identity: str = Field(default_factory=_default_identity, min_length=1)
    """Who holds the Lease: unique per replica (the pod's name)."""
    worker_image: str = Field(default="localhost/shipkeeper/operator:dev", min_length=1)
    """Image of a MigrationJob's worker; the operator's own image."""
    watch_namespaces: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Namespaces to serve, separated by commas; empty: all of them."""
    http_host: str = Field(default="0.0.0.0", min_length=1)  # noqa: S104 - probes and Prometheus come from outside the pod.
    """Address of the server of /healthz, /readyz and /metrics."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Its port; 0 takes a free one and logs it."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """The least important level that is logged."""
    workers: int = Field(default=8, ge=1, le=64)
    """Resources of one kind that are reconciled at the same time."""
    resync_seconds: float = Field(default=600, ge=1)
    """How often the watch cache is compared with the API server and every resource is looked at again."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from environment variables; absent or empty ones take their default.

    Raises SettingsError, which names the variable.
    """
    given = {
        name: value
        for name in Settings.model_fields
        if (value := environment.get(PREFIX + name.upper())) not in (None, "")
    }
    try:
        return Settings.model_validate(given)
    except ValidationError as invalid:
        faults = "; ".join(f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in invalid.errors())
        raise SettingsError(faults) from None
