"""The control group under which a cluster's pods run, on machines with version 1, version 2 or both."""

import contextlib
import os
import signal
import time
from pathlib import Path

from localcluster.errors import LocalClusterError

END_SECONDS = 15.0


def hierarchies(mounts: str) -> list[Path]:
    """The mount points of all control group hierarchies in a text like that of /proc/self/mounts."""
    fields = [line.split() for line in mounts.splitlines()]
    return list(dict.fromkeys(Path(each[1]) for each in fields if len(each) > 2 and each[2] in ("cgroup", "cgroup2")))


def _hierarchies() -> list[Path]:
    return hierarchies(Path("/proc/self/mounts").read_text())


def create(name: str) -> None:
    """Make the group in every hierarchy; in version 2 with every controller handed down to it."""
    for top in _hierarchies():
        group = top / name
        group.mkdir(exist_ok=True)
        if (top / "cgroup.controllers").exists():
            for controller in (top / "cgroup.controllers").read_text().split():
                for parent in (top, group):
                    # A controller that cannot be handed down (a domain with real-time processes) is one less, no more.
                    with contextlib.suppress(OSError):
                        (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def remove(name: str) -> None:
    """End what still runs in the group and remove it from every hierarchy.

    Raises LocalClusterError where something in it does not end.
    """
    deadline = time.monotonic() + END_SECONDS
    while left := [top / name for top in _hierarchies() if not _remove_tree(top / name)]:
        if time.monotonic() > deadline:
            raise LocalClusterError(f"{left[0]} cannot be removed: processes in it do not end.")
        time.sleep(0.05)


def _remove_tree(group: Path) -> bool:
    if not group.exists():
        return True
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            for pid in (Path(folder) / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return not group.exists()
