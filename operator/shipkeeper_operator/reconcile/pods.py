"""What keeps a pod from running, read from what the kubelet and the scheduler say of it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Pod = Mapping[str, Any]

_SECRET_MISSING = re.compile(r'secret "([^"]+)" not found')
_KEY_MISSING = re.compile(r"couldn't find key (\S+) in Secret \S+?/(\S+)")
_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True)
class PodTrouble:
    """Why a pod does not run, as one stable CamelCase word and a text that tells what to do."""

    reason: str
    message: str


def trouble(pods: Iterable[Pod]) -> PodTrouble | None:
    """Return what keeps the first troubled pod from running, or None where nothing does."""
    found = (each for pod in pods for each in (_container_trouble(pod), _scheduling_trouble(pod)) if each)
    return next(found, None)


def _container_trouble(pod: Pod) -> PodTrouble | None:
    for container in container_statuses(pod):
        waiting = container.get("state", {}).get("waiting")
        if waiting is None:
            continue
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason == "CreateContainerConfigError":
            return _configuration_trouble(message)
        if reason in _IMAGE_REASONS:
            image = container.get("image", "")
            return PodTrouble(
                "ImagePullFailed", f"image {image} cannot be pulled ({reason}): correct its name or access"
            )
    return None


def _configuration_trouble(message: str) -> PodTrouble:
    if missing := _SECRET_MISSING.search(message):
        return PodTrouble(
            "SecretNotFound", f"Secret {missing[1]} does not exist: create it; the pod then starts by itself"
        )
    if missing := _KEY_MISSING.search(message):
        text = f"Secret {missing[2]} has no key {missing[1]}: add it; the pod then starts by itself"
        return PodTrouble("SecretKeyMissing", text)
    return PodTrouble("CreateContainerConfigError", message)


def _scheduling_trouble(pod: Pod) -> PodTrouble | None:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return PodTrouble("Unschedulable", f"no node takes the pod: {condition.get('message', '')}")
    return None


def container_statuses(pod: Pod) -> Iterator[Mapping[str, Any]]:
    """Yield the statuses of a pod's init containers and containers."""
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses", [])
    yield from status.get("containerStatuses", [])
