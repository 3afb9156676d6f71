"""What is read from a pod that does not run. The messages are the kubelet's own."""

from typing import Any

import pytest

from shipkeeper_operator.reconcile.pods import trouble


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"status": {"containerStatuses": [{"name": "app", "image": "example.test/app:1", "state": state}]}}


@pytest.mark.parametrize(
    ("pod", "reason", "said"),
    [
        (waiting("CreateContainerConfigError", 'secret "db" not found'), "SecretNotFound", "Secret db does not exist"),
        (
            waiting("CreateContainerConfigError", "couldn't find key url in Secret shop/db"),
            "SecretKeyMissing",
            "Secret db has no key url",
        ),
        (waiting("ImagePullBackOff"), "ImagePullFailed", "example.test/app:1"),
        (waiting("InvalidImageName"), "ImagePullFailed", "InvalidImageName"),
    ],
)
def test_the_reason_is_stable_and_the_message_tells_what_to_do(pod: dict[str, Any], reason: str, said: str) -> None:
    found = trouble([pod])
    assert found is not None
    assert found.reason == reason
    assert said in found.message


def test_a_pod_that_no_node_takes() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    found = trouble([{"status": {"conditions": [condition]}}])
    assert found is not None
    assert found.reason == "Unschedulable"


def test_a_pod_that_starts_or_runs_has_no_trouble() -> None:
    running = {"status": {"containerStatuses": [{"name": "app", "state": {"running": {}}}]}}
    assert trouble([waiting("ContainerCreating"), running, {"status": {}}]) is None
