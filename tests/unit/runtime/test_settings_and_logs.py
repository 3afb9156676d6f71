"""What the process reads from its environment, and how it logs."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from shipkeeper_operator import logs
from shipkeeper_operator.settings import SettingsError, read_settings


def test_defaults() -> None:
    settings = read_settings({"SHIPKEEPER_NAMESPACE": "", "UNRELATED": "x"})
    assert settings.namespace == "shipkeeper-system"
    assert settings.http_port == 8080
    assert settings.watch_namespaces == ()
    assert settings.identity != read_settings({}).identity, "two replicas never share an identity by default"


def test_values() -> None:
    settings = read_settings(
        {
            "SHIPKEEPER_IDENTITY": "pod-1",
            "SHIPKEEPER_HTTP_PORT": "0",
            "SHIPKEEPER_WATCH_NAMESPACES": "one, two",
            "SHIPKEEPER_WORKERS": "3",
            "SHIPKEEPER_WORKER_IMAGE": "registry/x:1",
        }
    )
    assert settings.identity == "pod-1"
    assert settings.http_port == 0
    assert settings.watch_namespaces == ("one", "two")
    assert settings.workers == 3
    assert settings.worker_image == "registry/x:1"


def test_every_fault_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"SHIPKEEPER_WORKERS": "0", "SHIPKEEPER_LOG_LEVEL": "loud"})
    assert "SHIPKEEPER_WORKERS" in str(caught.value)
    assert "SHIPKEEPER_LOG_LEVEL" in str(caught.value)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure_logging("INFO")
    yield output
    root.handlers[:] = handlers
    root.setLevel(level)


def test_logs_are_json_and_name_their_resource(lines: io.StringIO) -> None:
    log = logs.resource_logger(logging.getLogger("test"), kind="Widget", namespace="n", name="a")
    log.info("looked at %s", "it", extra={"attempt": 2})
    log.debug("unheard")
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        log.error("failed", exc_info=error)
    logging.getLogger("plain").warning("no resource")
    logging.getLogger("kopf.x").info("unheard")
    first, second, third = (json.loads(line) for line in lines.getvalue().splitlines())
    assert first.pop("timestamp")
    assert first == {
        "level": "INFO",
        "logger": "test",
        "message": "looked at it",
        "kind": "Widget",
        "namespace": "n",
        "name": "a",
        "attempt": 2,
    }
    assert "RuntimeError: broken" in second["exception"]
    assert third["level"] == "WARNING"
    assert "kind" not in third
