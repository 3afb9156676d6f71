"""Starts background processes, finds them again later and ends them."""

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


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def find(module: str, folder: Path) -> list[int]:
    """The processes that run one of this package's modules for a cluster's folder, and the programs that wrap them.

    Asked of the kernel each time, so there is no pid file that could be stale or missing.
    """
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if module.encode() in words and str(folder).encode() in words and is_running(int(entry.name)):
                found.append(int(entry.name))
    return sorted(found)


def spawn(*command: str | Path, log: Path) -> int:
    """Start a background process in a session of its own, which outlives this one. Returns its id."""
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
    return child.pid


def python(*arguments: str | Path) -> tuple[str, ...]:
    """The command that runs this package's modules with the Python that runs now.

    It is the Python below a virtual environment, if any: the same command from `make cluster` and from a test.
    """
    interpreter = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (str(interpreter), "-B", *(str(argument) for argument in arguments))


def namespace(pid: int, kind: str) -> str | None:
    """The identity of a process's namespace (`net`, `pid`, ...), None where the process is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:
        return None


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
