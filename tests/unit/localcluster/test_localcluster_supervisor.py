import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localcluster import processes
from localcluster.errors import LocalClusterError
from localcluster.supervisor import Component, SupervisorFiles, accepts_connections

MODULE = "localcluster.supervisor"


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[SupervisorFiles]:
    yield SupervisorFiles(folder=tmp_path)
    for pid in processes.find(MODULE, tmp_path):
        processes.end(pid)


def start(files: SupervisorFiles, *components: Component) -> int:
    files.write(components)
    return processes.spawn(*processes.python("-m", MODULE, files.folder), log=files.logs / "supervisor.log")


def status(files: SupervisorFiles, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(files.status.read_text())[name]
    except FileNotFoundError:
        return {"pid": 0, "starts": 0}
    return found


def test_what_ends_is_started_again(files: SupervisorFiles) -> None:
    start(files, Component(name="sleeper", command=("/bin/sleep", "1000")))
    eventually(lambda: status(files, "sleeper")["starts"] == 1)
    first = status(files, "sleeper")["pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: status(files, "sleeper")["starts"] == 2 and status(files, "sleeper")["pid"] != 0)
    assert processes.is_running(status(files, "sleeper")["pid"])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_supervisor(files: SupervisorFiles, how: signal.Signals) -> None:
    supervisor = start(files, Component(name="sleeper", command=("/bin/sleep", "1000")))
    eventually(lambda: status(files, "sleeper")["pid"] != 0)
    child = status(files, "sleeper")["pid"]
    processes.end(supervisor, how)
    eventually(lambda: not processes.is_running(child))
    assert processes.find(MODULE, files.folder) == []


def test_a_component_waits_for_what_it_needs(files: SupervisorFiles, tmp_path: Path) -> None:
    address = tmp_path / "needed.sock"
    start(
        files,
        Component(name="first", command=("/bin/sleep", "1000")),
        Component(name="second", command=("/bin/sleep", "1000"), needs=(f"unix:{address}",)),
    )
    eventually(lambda: status(files, "first")["pid"] != 0)
    assert status(files, "second")["pid"] == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(address))
        server.listen()
        assert accepts_connections(f"unix:{address}")
        eventually(lambda: status(files, "second")["pid"] != 0)


def test_a_program_that_cannot_start_says_why_and_is_tried_again(files: SupervisorFiles) -> None:
    start(files, Component(name="missing", command=("/no/such/program",)))
    eventually(lambda: status(files, "missing")["starts"] >= 2)
    assert "missing does not start: " in (files.logs / "missing.log").read_text()
    assert "missing ended with 127" in (files.logs / "supervisor.log").read_text()


def test_a_second_supervisor_of_the_same_folder_gives_up(files: SupervisorFiles) -> None:
    first = start(files, Component(name="sleeper", command=("/bin/sleep", "1000")))
    eventually(lambda: status(files, "sleeper")["pid"] != 0)
    second = start(files, Component(name="sleeper", command=("/bin/sleep", "1000")))
    eventually(lambda: not processes.is_running(second))
    assert processes.find(MODULE, files.folder) == [first]
    assert "Another supervisor runs" in (files.logs / "supervisor.log").read_text()


def test_a_list_of_another_version_is_named_as_the_reason(files: SupervisorFiles) -> None:
    files.specification.write_text('[{"name": "etcd", "command": [], "needs": [], "unknown": 1}]')
    with pytest.raises(LocalClusterError, match=r"supervisor\.json cannot be read.*make cluster"):
        files.components()


def test_nothing_listens_where_nothing_listens(tmp_path: Path) -> None:
    assert not accepts_connections(f"unix:{tmp_path / 'nothing.sock'}")
    assert not accepts_connections("tcp:127.0.0.1:1")
