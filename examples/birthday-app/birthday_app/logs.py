"""Logs as JSON lines on standard error, one object an event, also those of uvicorn."""

import logging
import sys

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

# What the platform asks every few seconds would drown what a person looks for.
PROBES = ("/health", "/ready", "/metrics")


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether an access is not a probe that went well. uvicorn logs (client, method, path, HTTP version, status)."""
    match record.args:
        case (_, _, path, _, 200):
            return path not in PROBES
    return True


def configure(level: str) -> None:
    """Send every logger's records to standard error as JSON, from that level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message"],
            timestamp=True,
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            rename_fields_keep_missing=False,
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("uvicorn.access").addFilter(_is_worth_a_line)
