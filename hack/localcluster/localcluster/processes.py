"""Starts background processes and finds them again later, safe against a process id that was given to another."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from localcluster import paths
from localcluster.errors import LocalClusterError

STOP_SECONDS = 30.0
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _state_and_start(pid: int) -> tuple[str, str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    found = _state_and_start(pid)
    return found is not None and found[0] not in "ZX"


def read_pid(path: Path) -> int | None:
    """The process that a pid file names, None where it ended (also when its number was reused, or after a reboot)."""
    try:
        pid, _, start = path.read_text().strip().partition(" ")
        found = _state_and_start(int(pid))
    except (OSError, ValueError):
        return None
    return int(pid) if found is not None and found[0] not in "ZX" and found[1] == start else None


def spawn(*command: str | Path, log: Path, pid_file: Path) -> int:
    """Start a background process in a session of its own, which outlives this one, and note its id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # Not the caller's environment: a proxy's variables, for one, would send the components' calls to each other astray.
    environment = {"PATH": SYSTEM_PATH, "PYTHONPATH": str(paths.source_folder()), "PYTHONUNBUFFERED": "1"}
    with log.open("a") as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    # It is meant to outlive this object: without a code the object would warn that its process still runs.
    child.returncode = 0
    found = _state_and_start(child.pid)
    paths.write_atomically(pid_file, f"{child.pid} {found[1] if found else 0}\n")
    return child.pid


def python(*arguments: str | Path) -> tuple[str, ...]:
    """The command that runs this package's modules with the Python that runs now."""
    return (sys.executable, "-B", *(str(argument) for argument in arguments))


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def end(pid: int, how: signal.Signals = signal.SIGTERM) -> None:
    """Signal a process and wait until it is gone; SIGKILL when the signal did not do it.

    Raises LocalClusterError where even that does not end it.
    """
    for number in (how, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            _reap(pid)
            if not is_running(pid):
                return
            time.sleep(0.02)
    raise LocalClusterError(f"Process {pid} does not end, not even by SIGKILL.")


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
