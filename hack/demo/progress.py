"""Follows the resources until they are true, and shows how far they are."""

import time
from typing import Any

from demo.kubectl import Kubectl, condition, is_current
from demo.steps import DemoError, LiveLine


def follow_migration(kubectl: Kubectl, name: str, *, namespace: str, timeout: float = 600) -> dict[str, Any]:
    """Show the migration's progress until it is ready and verified, and return it.

    Raises DemoError with its own reason where it needs a person, or is not done after `timeout` seconds.
    """
    line = LiveLine()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = kubectl.get("migrationjob", name, namespace=namespace) or {}
        if found and is_current(found, "Ready") and is_current(found, "Verified"):
            line.close(_progress(found))
            return found
        if found and is_current(found, "Stalled"):
            line.close(_progress(found))
            stalled = condition(found, "Stalled")
            raise DemoError(f"the migration needs a person ({stalled['reason']}): {stalled['message']}")
        line.show(_progress(found))
        time.sleep(1)
    raise DemoError(f"the migration was not complete within {timeout:.0f} s")


def _progress(found: dict[str, Any]) -> str:
    status = found.get("status", {})
    progress = status.get("progress", {})
    if not progress.get("display"):
        # Nothing to count yet: say what is waited for.
        ready = condition(found, "Ready") if found else {}
        return f"{status.get('phase', 'Pending')}  {ready.get('message', 'not seen by the operator yet')}"
    parts = [
        status.get("phase", "Pending"),
        status.get("currentStep", ""),
        progress.get("display", ""),
        f"{progress['rowsPerSecond']} rows/s" if progress.get("rowsPerSecond") else "",
        f"ETA {progress['eta']}" if progress.get("eta") else "",
        f"throttled by {status['throttle']['reason']}" if _is_throttled(status) else "",
    ]
    return "  ".join(part for part in parts if part)


def _is_throttled(status: dict[str, Any]) -> bool:
    return bool(status.get("throttle", {}).get("reason", "None") != "None")


def wait_until_ready(kubectl: Kubectl, kind: str, name: str, *, namespace: str, timeout: float = 180) -> dict[str, Any]:
    """Show a resource's Ready condition until it is true, and return the resource.

    Raises DemoError with the last reason after `timeout` seconds.
    """
    line = LiveLine()
    deadline = time.monotonic() + timeout
    text = f"{kind} {name}: not there"
    while time.monotonic() < deadline:
        found = kubectl.get(kind, name, namespace=namespace)
        if found is not None:
            ready = condition(found, "Ready")
            text = f"{kind} {name}: {ready.get('reason', 'Pending')}: {ready.get('message', '')}"
            if is_current(found, "Ready"):
                line.close(text)
                return found
        line.show(text)
        time.sleep(1)
    line.close(text)
    raise DemoError(f"{kind} {name} was not ready within {timeout:.0f} s; it says: {text}")
