"""Runs the programs of a cluster, each with a log of its own, and starts again what ends.

One supervisor serves one cluster; a lock keeps a second one out. Its children die with it: they ask the kernel for a
SIGKILL at their parent's death. That suits a cluster whose state is thrown away or, after a kill, found again as after
a power cut.

In a node's namespaces the supervisor is process 1, and the kernel ends all the rest with it.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localcluster.errors import LocalClusterError
from localcluster.paths import write_atomically

PR_SET_PDEATHSIG = 1
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
POLL_SECONDS = 0.05
IDLE_SECONDS = 3600.0
SETTLED_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 10.0
LOG_LIMIT_BYTES = 20_000_000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Component:
    """A program to keep running.

    It starts when everything in `needs` accepts connections: `tcp:HOST:PORT` or `unix:PATH`.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Process:
    component: Component
    pid: int = 0
    starts: int = 0
    began: float = 0.0
    pause: float = 0.0
    not_before: float = field(default=0.0)


def accepts_connections(address: str) -> bool:
    """Whether something listens at `tcp:HOST:PORT` or `unix:PATH`."""
    kind, _, where = address.partition(":")
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            host, _, port = where.rpartition(":")
            probe.connect(where if kind == "unix" else (host, int(port)))
        except OSError:
            return False
    return True


class Supervisor:
    """Keeps components running until it is told to stop (SIGTERM)."""

    def __init__(self, components: Sequence[Component], *, logs: Path, status: Path) -> None:
        self._processes = [_Process(component=component) for component in components]
        self._logs = logs
        self._status = status

    def run(self) -> None:
        """Start the components and supervise them. Returns after SIGTERM or SIGINT, when all have ended."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._logs.mkdir(parents=True, exist_ok=True)
        while True:
            self._start_what_is_due()
            waiting = any(process.pid == 0 for process in self._processes)
            received = signal.sigtimedwait(SIGNALS, POLL_SECONDS if waiting else IDLE_SECONDS)
            if received is not None and received.si_signo != signal.SIGCHLD:
                self._end_all()
                return
            self._reap()

    def _start_what_is_due(self) -> None:
        for process in self._processes:
            due = process.pid == 0 and time.monotonic() >= process.not_before
            if due and all(accepts_connections(address) for address in process.component.needs):
                self._start(process)

    def _start(self, process: _Process) -> None:
        log = self._logs / f"{process.component.name}.log"
        if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.old"))
        pid = os.fork()
        if pid == 0:
            _become(process.component, log)
        process.pid, process.began, process.starts = pid, time.monotonic(), process.starts + 1
        print(f"{_now()} started {process.component.name} (process {pid})", flush=True)
        self._write_status()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for process in self._processes:
                if process.pid == pid:
                    self._plan_restart(process, os.waitstatus_to_exitcode(status))

    def _plan_restart(self, process: _Process, exit_code: int) -> None:
        lived = time.monotonic() - process.began
        process.pause = 0.5 if lived > SETTLED_SECONDS else min(LONGEST_PAUSE_SECONDS, max(0.5, process.pause * 2))
        process.pid, process.not_before = 0, time.monotonic() + process.pause
        name = process.component.name
        print(f"{_now()} {name} ended with {exit_code} after {lived:.1f} s, again in {process.pause:.1f} s", flush=True)
        self._write_status()

    def _end_all(self) -> None:
        # SIGKILL at once: nothing here needs a farewell, and a test should not wait for one.
        for process in self._processes:
            if process.pid:
                os.kill(process.pid, signal.SIGKILL)
        for process in self._processes:
            if process.pid:
                os.waitpid(process.pid, 0)

    def _write_status(self) -> None:
        status = {process.component.name: {"pid": process.pid, "starts": process.starts} for process in self._processes}
        write_atomically(self._status, json.dumps(status))


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _become(component: Component, log: Path) -> None:
    """Turn the forked child into the program; never returns."""
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execv(component.command[0], component.command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{component.name} does not start: {error}\n".encode())
    finally:
        os._exit(127)


@dataclass(frozen=True, kw_only=True)
class SupervisorFiles:
    """The files of a supervisor in a cluster's folder."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Held while the supervisor lives."""
        return self.folder / "supervisor.lock"

    @property
    def specification(self) -> Path:
        """The components, as JSON."""
        return self.folder / "supervisor.json"

    @property
    def status(self) -> Path:
        """Process ids and counts of starts, as JSON."""
        return self.folder / "supervisor.status.json"

    @property
    def logs(self) -> Path:
        """One log for each component and one for the supervisor."""
        return self.folder / "logs"

    def write(self, components: Sequence[Component]) -> None:
        """Write down what the supervisor shall run."""
        write_atomically(self.specification, json.dumps([asdict(component) for component in components], indent=1))

    def components(self) -> list[Component]:
        """What `write` wrote. Raises LocalClusterError where another version of this package wrote something else."""
        try:
            entries = json.loads(self.specification.read_text())
            return [
                Component(**{**entry, "command": tuple(entry["command"]), "needs": tuple(entry["needs"])})
                for entry in entries
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalClusterError(
                f"{self.specification} cannot be read: {error}. Start the cluster again: make cluster"
            ) from error


def supervise(folder: Path) -> int:
    """Run the supervisor of a cluster's folder until it is told to stop. Returns an exit code."""
    files = SupervisorFiles(folder=folder)
    with files.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another supervisor runs for {folder}.", file=sys.stderr)
            return 1
        Supervisor(files.components(), logs=files.logs, status=files.status).run()
    return 0


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1])))
