"""How a rollout is going, from what the Deployment controller and the kubelets say: one stable reason, one message.

Only facts that stay put until something happens are used: a container that crashes and restarts must not change the
status each time, and a message names no pod and no count of restarts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from shipkeeper.resources.appdeployment import AppDeployment
from shipkeeper.resources.appdeployment_pod import Probe, ReadinessProbe
from shipkeeper.resources.base import parse_duration
from shipkeeper_operator.children.appdeployment_names import CONTAINER_NAME, selector_text

from .pods import PodTrouble, container_statuses, trouble

# After the second start the kubelet waits longer and longer: from then on it is a loop.
_RESTARTS_OF_A_LOOP: Final = 2
# What a container ends with when it was told to end: here, by the kubelet, because a probe said so.
_EXIT_CODES_OF_A_SIGNAL: Final = (137, 143)

# However quick its probes, a container gets this long to become ready before that is called a failure: the kubelet
# does not say when a startup probe passed, and a slow start must not look like a failing readiness probe.
_PATIENCE: Final = timedelta(seconds=30)

Urgency = Literal["None", "Wait", "Failing", "Person"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Where a rollout stands."""

    reason: str
    message: str
    urgency: Urgency
    """None: it is done. Wait: it is under way. Failing: something is wrong that may heal by itself. Person: somebody
    must act."""
    look_again_after: timedelta | None = None
    """When the same facts will mean something else."""


@dataclass(frozen=True)
class Counts:
    """The numbers of a Deployment's status."""

    total: int = 0
    updated: int = 0
    ready: int = 0
    available: int = 0


def counts(deployment: Mapping[str, Any] | None) -> Counts:
    """Return how many pods there are, of what kind."""
    status = (deployment or {}).get("status", {})
    return Counts(
        total=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
        available=status.get("availableReplicas", 0),
    )


def is_complete(deployment: Mapping[str, Any]) -> bool:
    """Whether all pods are of the newest template and available, and no old one is left."""
    seen = deployment.get("status", {}).get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    wanted, now = deployment["spec"].get("replicas", 1), counts(deployment)
    return bool(seen and now.updated == now.total == now.available == wanted)


def assess(
    resource: AppDeployment, *, deployment: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: datetime
) -> Rollout:
    """Return where the rollout of a Deployment stands."""
    wanted, have = deployment["spec"].get("replicas", 1), counts(deployment)
    if is_complete(deployment):
        if wanted == 0:
            return Rollout(reason="ScaledToZero", message="spec.replicas is 0: no pod runs", urgency="None")
        return Rollout(reason="Available", message=f"{have.available} of {wanted} pods serve", urgency="None")
    stuck = _deployment_condition(deployment, "Progressing", reason="ProgressDeadlineExceeded")
    if found := _obstacle(resource, pods, now=now):
        person = found.urgency == "Person" or stuck is not None
        return Rollout(reason=found.reason, message=found.message, urgency="Person" if person else "Failing")
    if refused := _deployment_condition(deployment, "ReplicaFailure", status="True"):
        text = f"the API server refuses the pods: {refused.get('message', '')}"
        return Rollout(reason="PodsRefused", message=text, urgency="Person")
    if stuck is not None:
        since = resource.spec.rollout.progress_deadline
        text = f"no progress for {since}: {_numbers(have, wanted)}; {_describe(resource)}"
        return Rollout(reason="ProgressDeadlineExceeded", message=text, urgency="Person")
    return Rollout(
        reason="RollingOut",
        message=_numbers(have, wanted),
        urgency="Wait",
        look_again_after=_until_probe_failure(resource, pods, now=now),
    )


def pod_trouble(resource: AppDeployment, pods: Iterable[Mapping[str, Any]], *, now: datetime) -> PodTrouble | None:
    """Return what keeps a pod from serving, or None."""
    found = _obstacle(resource, tuple(pods), now=now)
    return None if found is None else PodTrouble(found.reason, found.message)


def _numbers(have: Counts, wanted: int) -> str:
    return f"{have.updated} of {wanted} pods are of the new template, {have.available} serve"


def _describe(resource: AppDeployment) -> str:
    return f"kubectl -n {resource.metadata.namespace} describe pods -l {selector_text(resource)}"


def _logs(resource: AppDeployment) -> str:
    selector = selector_text(resource)
    return f"kubectl -n {resource.metadata.namespace} logs -l {selector} -c {CONTAINER_NAME} --previous"


def _deployment_condition(
    deployment: Mapping[str, Any], type_: str, *, reason: str | None = None, status: str = "False"
) -> Mapping[str, Any] | None:
    for condition in deployment.get("status", {}).get("conditions", ()):
        matches = condition["type"] == type_ and condition["status"] == status
        if matches and (reason is None or condition.get("reason") == reason):
            return dict(condition)
    return None


def _obstacle(resource: AppDeployment, pods: Iterable[Mapping[str, Any]], *, now: datetime) -> Rollout | None:
    pods = tuple(pods)
    if found := trouble(pods):
        # A cluster may yet get another node; all else waits for a person.
        urgency: Urgency = "Failing" if found.reason == "Unschedulable" else "Person"
        return Rollout(reason=found.reason, message=found.message, urgency=urgency)
    for pod in pods:
        for container in container_statuses(pod):
            if crash := _crash(resource, container):
                return crash
    for pod in pods:
        for container in container_statuses(pod):
            left = _until_unready_counts(resource, pod, container, now=now)
            if left is not None and left <= timedelta(0):
                return _probe_failing(resource, container)
    return None


def _crash(resource: AppDeployment, container: Mapping[str, Any]) -> Rollout | None:
    ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
    if container.get("ready") or ended is None or container.get("restartCount", 0) < _RESTARTS_OF_A_LOOP:
        return None
    name, code = container.get("name", ""), ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        text = f"container {name} is killed for using more memory than its limit: raise spec.resources.limits.memory"
        return Rollout(reason="CrashLoop", message=text, urgency="Person")
    if code in _EXIT_CODES_OF_A_SIGNAL:
        text = (
            f"container {name} is stopped again and again (exit code {code}): its liveness or startup probe fails; "
            f"{_describe(resource)}"
        )
        return Rollout(reason="ProbeFailing", message=text, urgency="Person")
    text = f"container {name} ends again and again (exit code {code}): {_logs(resource)}"
    return Rollout(reason="CrashLoop", message=text, urgency="Person")


def _probe_failing(resource: AppDeployment, container: Mapping[str, Any]) -> Rollout:
    probe = _unanswered_probe(resource, container)
    what = "readiness" if isinstance(probe, ReadinessProbe) else "startup"
    asked = f"{probe.type} {probe.path}" if probe.type == "HTTP" else probe.type
    text = f"container {container.get('name', '')} runs but its {what} probe ({asked}) fails; {_describe(resource)}"
    return Rollout(reason="ProbeFailing", message=text, urgency="Failing")


def _until_unready_counts(
    resource: AppDeployment, pod: Mapping[str, Any], container: Mapping[str, Any], *, now: datetime
) -> timedelta | None:
    """Return how long a running container may go on without being ready; None where it is ready or does not run."""
    running = container.get("state", {}).get("running")
    if running is None or container.get("ready") or "startedAt" not in running:
        return None
    started_at = datetime.fromisoformat(running["startedAt"])
    if _was_ready_since(pod, started_at):
        return timedelta(0)  # The kubelet has counted the failures already.
    probe = _unanswered_probe(resource, container)
    tries = parse_duration(probe.period) * probe.failure_threshold
    return started_at + max(parse_duration(probe.initial_delay) + tries, _PATIENCE) - now


def _was_ready_since(pod: Mapping[str, Any], started_at: datetime) -> bool:
    """Whether the pod became unready after its container started, so that it had been ready in between."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] != "True" and "lastTransitionTime" in condition:
            return datetime.fromisoformat(condition["lastTransitionTime"]) > started_at
    return False


def _unanswered_probe(resource: AppDeployment, container: Mapping[str, Any]) -> Probe:
    """Return the probe that a running container that is not ready has yet to pass."""
    probes = resource.spec.probes
    return probes.startup if container.get("started") is False else probes.readiness


def _until_probe_failure(
    resource: AppDeployment, pods: Iterable[Mapping[str, Any]], *, now: datetime
) -> timedelta | None:
    waits = [
        left
        for pod in pods
        for container in container_statuses(pod)
        if (left := _until_unready_counts(resource, pod, container, now=now)) is not None
    ]
    return max(min(waits), timedelta(seconds=1)) if waits else None
