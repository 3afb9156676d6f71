"""Logs as JSON, one object a line, with the resource they are about in `kind`, `namespace` and `name`."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_RESOURCE = "resource"


class _Formatter(JsonFormatter):
    """Put the resource's fields at the top level (a log record already has a `name` of its own: the logger's)."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data.update(log_data.pop(_RESOURCE, {}))


class ResourceLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that says which resource it speaks of."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the resource to the record."""
        kwargs["extra"] = {_RESOURCE: dict(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


def resource_logger(logger: logging.Logger, *, kind: str, namespace: str, name: str) -> ResourceLogger:
    """Return a logger for messages about one resource."""
    return ResourceLogger(logger, {"kind": kind, "namespace": namespace, "name": name})


def configure_logging(level: str) -> None:
    """Send all logs of the process to standard output as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        _Formatter(
            ["levelname", "name", "message"],
            timestamp=True,
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            rename_fields_keep_missing=False,
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Libraries speak where something is wrong; kopf's own story of each object would drown ours.
    for noisy in ("kopf", "aiohttp.access", "asyncio", "kubernetes"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
