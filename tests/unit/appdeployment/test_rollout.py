"""Where a rollout stands, by what Deployment and kubelet say; and that the answer does not flicker."""

from datetime import timedelta
from typing import Any

import pytest

from shipkeeper_operator.children.appdeployment import build_deployment
from shipkeeper_operator.children.appdeployment_pod import build_pod_template
from shipkeeper_operator.reconcile.appdeployment import reconcile
from shipkeeper_operator.reconcile.appdeployment_facts import ObservedApp
from shipkeeper_operator.reconcile.appdeployment_rollout import Rollout, assess
from support.applications import NOW, application, as_served, pod

RUNNING_LONG = {"running": {"startedAt": "2026-03-01T11:00:00Z"}}
RUNNING_10_SECONDS = {"running": {"startedAt": "2026-03-01T11:59:50Z"}}


def live(*, replicas: int = 1, have: int = 0, **status: Any) -> dict[str, Any]:
    resource = application(replicas=replicas)
    template = build_pod_template(resource, keys=None, scrape_annotations=True)
    return as_served(build_deployment(resource, template=template, released="hash"), have=have, **status)


def where(*pods: dict[str, Any], deployment: dict[str, Any] | None = None) -> Rollout:
    return assess(application(), deployment=deployment or live(), pods=pods, now=NOW)


def condition(type_: str, status: str, reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": type_, "status": status, "reason": reason, "message": "why"}]}


def test_complete() -> None:
    found = where(pod(), deployment=live(have=1))
    assert (found.reason, found.urgency) == ("Available", "None")
    none = assess(application(replicas=0), deployment=live(replicas=0), pods=(), now=NOW)
    assert (none.reason, none.urgency) == ("ScaledToZero", "None")


@pytest.mark.parametrize(
    "deployment",
    [
        live(replicas=2, have=1),
        live(have=1, updatedReplicas=0),
        live(have=2),
        live(have=1, observedGeneration=0),
        live(have=1, availableReplicas=0),
    ],
)
def test_under_way(deployment: dict[str, Any]) -> None:
    found = where(pod(), deployment=deployment)
    assert (found.reason, found.urgency) == ("RollingOut", "Wait")


@pytest.mark.parametrize(
    ("container", "reason", "urgency", "text"),
    [
        (
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}},
            "ImagePullFailed", "Person", "registry.test/app:1",
        ),
        (
            {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "db" not found'}}},
            "SecretNotFound", "Person", "Secret db",
        ),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
                "restartCount": 7,
            },
            "CrashLoop", "Person", "logs -l shipkeeper.dev/appdeployment=app -c app --previous",
        ),
        # Between two crashes it runs: the answer must be the same, and name no count.
        (
            {
                "state": RUNNING_10_SECONDS,
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
                "restartCount": 8,
            },
            "CrashLoop", "Person", "exit code 1",
        ),
        (
            {"state": RUNNING_10_SECONDS, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
             "restartCount": 2},
            "CrashLoop", "Person", "spec.resources.limits.memory",
        ),
        (
            {"state": RUNNING_10_SECONDS, "lastState": {"terminated": {"exitCode": 143, "reason": "Error"}},
             "restartCount": 2},
            "ProbeFailing", "Person", "liveness or startup probe",
        ),
        ({"state": RUNNING_LONG}, "ProbeFailing", "Failing", "readiness probe (HTTP /ready)"),
        ({"state": RUNNING_LONG, "started": False}, "ProbeFailing", "Failing", "startup probe (HTTP /health)"),
        ({"state": RUNNING_10_SECONDS}, "RollingOut", "Wait", "0 of 1"),
        ({"state": RUNNING_10_SECONDS, "restartCount": 1}, "RollingOut", "Wait", "0 of 1"),
    ],
)  # fmt: skip
def test_what_the_kubelet_says(container: dict[str, Any], reason: str, urgency: str, text: str) -> None:
    found = where(pod(ready=False, **container))
    assert (found.reason, found.urgency) == (reason, urgency)
    assert text in found.message


def test_a_slow_start_is_looked_at_again_when_it_would_count() -> None:
    # Readiness fails after 3 tries every 5 s, but 30 s pass before that is said; it runs for 10 s.
    assert where(pod(ready=False, state=RUNNING_10_SECONDS)).look_again_after == timedelta(seconds=20)
    starting = where(pod(ready=False, state=RUNNING_10_SECONDS, started=False))
    assert starting.look_again_after == timedelta(seconds=110)


def test_a_pod_that_was_ready_and_is_no_more_counts_at_once() -> None:
    troubled = pod(ready=False, state=RUNNING_10_SECONDS)
    troubled["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-03-01T11:59:58Z"}
    ]
    assert where(troubled).reason == "ProbeFailing"
    troubled["status"]["conditions"][0]["lastTransitionTime"] = "2026-03-01T11:59:40Z"
    assert where(troubled).reason == "RollingOut"


def test_no_node_is_waited_for() -> None:
    waiting = pod(ready=False, state={})
    waiting["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    ]
    assert (where(waiting).reason, where(waiting).urgency) == ("Unschedulable", "Failing")
    stuck = live(**condition("Progressing", "False", "ProgressDeadlineExceeded"))
    assert where(waiting, deployment=stuck).urgency == "Person"


def test_the_deployment_controllers_own_words() -> None:
    refused = where(deployment=live(**condition("ReplicaFailure", "True", "FailedCreate")))
    assert (refused.reason, refused.urgency) == ("PodsRefused", "Person")
    assert "why" in refused.message
    stuck = where(pod(), deployment=live(**condition("Progressing", "False", "ProgressDeadlineExceeded")))
    assert (stuck.reason, stuck.urgency) == ("ProgressDeadlineExceeded", "Person")
    moving = where(pod(), deployment=live(**condition("Progressing", "True", "ReplicaSetUpdated")))
    assert moving.reason == "RollingOut"


@pytest.mark.parametrize(
    ("deployment", "pods", "expected"),
    [
        (None, (), {"Ready": "False", "Reconciling": "True", "Available": "False", "Released": "True"}),
        (live(have=1), (pod(),), {"Ready": "True", "Available": "True", "Released": "True"}),
        (
            live(),
            (pod(ready=False, state={"waiting": {"reason": "ErrImagePull"}}),),
            {"Ready": "False", "Stalled": "True", "Available": "False", "Released": "True"},
        ),
        (
            live(),
            (pod(ready=False, state=RUNNING_10_SECONDS),),
            {"Ready": "False", "Reconciling": "True", "Available": "False", "Released": "True"},
        ),
    ],
)
def test_conditions(deployment: Any, pods: Any, expected: dict[str, str]) -> None:
    outcome = reconcile(application(), ObservedApp(deployment=deployment, pods=pods), now=NOW)
    assert {each.type: each.status for each in outcome.status.conditions} == expected


def test_the_same_state_gives_the_same_status_at_any_time() -> None:
    observed = ObservedApp(deployment=live(have=1), pods=(pod(),))
    first = reconcile(application(), observed, now=NOW)
    later = reconcile(application(status=first.status.to_wire()), observed, now=NOW + timedelta(days=1))
    assert later == first
