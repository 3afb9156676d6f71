"""The loop against a real API server: what it writes, what it leaves alone, what it repairs."""

import json
import time
from pathlib import Path

from demo.kubectl import Kubectl
from support.apiserver import eventually
from support.operator_process import OperatorProcess

from .conftest import Widgets, condition, settle


def _added(operator: OperatorProcess, before: dict[str, int]) -> dict[str, int]:
    """Return the writes since, once the operator is at rest."""
    now = settle(operator)
    return {what: count - before.get(what, 0) for what, count in now.items() if count != before.get(what, 0)}


def test_brings_up_with_one_write_per_child_and_one_status(
    operator: OperatorProcess, widget: Widgets, kubectl: Kubectl
) -> None:
    before = settle(operator)
    widget.apply("a", parts=["one", "two"])
    eventually(lambda: widget.is_ready("a"))
    assert _added(operator, before) == {"apply ConfigMap": 2, "apply Widget/status": 1, "create Event": 1}
    text = kubectl.run("get", "configmap", "a-one", "-n", widget.namespace, "-o=json", "--show-managed-fields")
    child = json.loads(text)
    assert child["data"] == {"text": "hello"}
    owners = [(entry["manager"], entry["operation"]) for entry in child["metadata"]["managedFields"]]
    assert owners == [("shipkeeper", "Apply")]


def test_idle_operator_writes_nothing(operator: OperatorProcess, widget: Widgets) -> None:
    for name in ("a", "b", "c"):
        widget.apply(name, deployment=True)
    for name in ("a", "b", "c"):
        eventually(lambda name=name: widget.is_ready(name))  # type: ignore[misc]
    before = settle(operator)
    time.sleep(5)
    assert operator.writes() == before


def test_burst_of_changes_makes_few_passes_and_ends_at_the_last(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", text="first")
    eventually(lambda: widget.is_ready("a"))
    settle(operator)
    passes = operator.metric("shipkeeper_reconcile_total")
    manifests = [
        {
            "apiVersion": "shipkeeper.dev/v1alpha1",
            "kind": "Widget",
            "metadata": {"name": "a", "namespace": widget.namespace},
            "spec": {"text": f"text {number}", "parts": ["one"]},
        }
        for number in range(20)
    ]
    widget.kubectl.apply(*manifests)
    eventually(lambda: (widget.configmap("a-one") or {})["data"]["text"] == "text 19")
    eventually(lambda: widget.is_ready("a"))
    settle(operator)
    assert operator.metric("shipkeeper_reconcile_total") - passes <= 20


def test_drift_of_a_child_is_repaired(operator: OperatorProcess, widget: Widgets, kubectl: Kubectl) -> None:
    widget.apply("a", deployment=True, memory="1024Mi")
    eventually(lambda: widget.is_ready("a"))
    kubectl.patch("configmap", "a-one", {"data": {"text": "tampered"}}, namespace=widget.namespace)
    eventually(lambda: (widget.configmap("a-one") or {})["data"] == {"text": "hello"})
    kubectl.run("delete", "configmap", "a-one", "-n", widget.namespace)
    eventually(lambda: widget.configmap("a-one"))
    kubectl.patch("deployment", "a", {"spec": {"replicas": 3}}, namespace=widget.namespace)
    eventually(lambda: (kubectl.get("deployment", "a", namespace=widget.namespace) or {})["spec"]["replicas"] == 1)


def test_what_others_add_is_left_alone(operator: OperatorProcess, widget: Widgets, kubectl: Kubectl) -> None:
    widget.apply("a")
    eventually(lambda: widget.is_ready("a"))
    kubectl.patch("configmap", "a-one", {"data": {"theirs": "stays"}}, namespace=widget.namespace)
    before = settle(operator)
    child = widget.configmap("a-one")
    assert child is not None
    assert child["data"] == {"text": "hello", "theirs": "stays"}
    assert operator.writes() == before


def test_removed_field_is_removed(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", note="for now")
    eventually(lambda: (widget.configmap("a-one") or {})["data"] == {"text": "hello", "note": "for now"})
    widget.apply("a")
    eventually(lambda: (widget.configmap("a-one") or {})["data"] == {"text": "hello"})


def test_child_no_longer_wanted_is_pruned(operator: OperatorProcess, widget: Widgets, kubectl: Kubectl) -> None:
    before = settle(operator)
    kubectl.run("create", "configmap", "bystander", "-n", widget.namespace)
    widget.apply("a", parts=["one", "two"], deployment=True)
    eventually(lambda: widget.is_ready("a"))
    widget.apply("a", parts=["two"])
    eventually(lambda: widget.configmap("a-one") is None)
    eventually(lambda: kubectl.get("deployment", "a", namespace=widget.namespace) is None)
    assert widget.configmap("a-two") is not None
    assert widget.configmap("bystander") is not None
    deleted = {what: count for what, count in _added(operator, before).items() if what.startswith("delete")}
    assert deleted == {"delete ConfigMap": 1, "delete Deployment": 1}


def test_object_of_somebody_else_is_never_taken(operator: OperatorProcess, widget: Widgets, kubectl: Kubectl) -> None:
    kubectl.run("create", "configmap", "a-one", "-n", widget.namespace, "--from-literal=text=theirs")
    widget.apply("a")
    stalled = eventually(lambda: condition(widget.get("a"), "Stalled"))
    assert stalled["reason"] == "NameTaken"
    assert "ConfigMap" in stalled["message"]
    assert "a-one" in stalled["message"]
    child = widget.configmap("a-one")
    assert child is not None
    assert child["data"] == {"text": "theirs"}
    kubectl.run("delete", "configmap", "a-one", "-n", widget.namespace)
    widget.apply("a", text="mine")
    eventually(lambda: widget.is_ready("a"))


def test_referrer_is_woken(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("b", refersTo="a")
    eventually(lambda: widget.is_ready("b"))
    assert "repeated" not in widget.get("b")["status"]
    widget.apply("a", text="say it")
    eventually(lambda: widget.get("b")["status"].get("repeated") == "say it")
    widget.kubectl.run("delete", "widget", "a", "-n", widget.namespace)
    eventually(lambda: "repeated" not in widget.get("b")["status"])


def test_status_follows_a_childs_status(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", deployment=True)
    eventually(lambda: widget.get("a").get("status", {}).get("replicas") == 1)


def test_finalizer_guards_what_lies_outside(operator: OperatorProcess, widget: Widgets, store: Path) -> None:
    widget.apply("a", stored=True, text="kept")
    eventually(lambda: widget.is_ready("a"))
    found = widget.get("a")
    assert found["metadata"]["finalizers"] == ["shipkeeper.dev/finalizer"]
    stored = store / found["metadata"]["uid"]
    assert stored.read_text() == "kept"
    stored.unlink()
    widget.apply("a", stored=True, text="kept anew")
    eventually(lambda: stored.exists() and stored.read_text() == "kept anew")
    widget.kubectl.run("delete", "widget", "a", "-n", widget.namespace, "--timeout=20s")
    assert not stored.exists()
    assert widget.get("a") == {}


def test_finalizer_goes_with_its_reason(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", stored=True)
    eventually(lambda: widget.is_ready("a"))
    widget.kubectl.patch("widget", "a", {"metadata": {"finalizers": ["theirs.example/x"]}}, namespace=widget.namespace)
    eventually(lambda: "shipkeeper.dev/finalizer" in widget.get("a")["metadata"]["finalizers"])
    widget.apply("a")
    eventually(lambda: widget.get("a")["metadata"]["finalizers"] == ["theirs.example/x"])
    widget.kubectl.run(
        "patch", "widget", "a", "-n", widget.namespace, "--type=merge", '-p={"metadata":{"finalizers":[]}}'
    )


def test_bug_is_counted_and_stops_nobody_else(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", text="bug")
    bug = eventually(lambda: [line for line in operator.log_lines() if line["level"] == "ERROR"])[-1]
    assert operator.metric("shipkeeper_reconcile_errors_total", reason="InternalError") == 1
    widget.apply("b")
    eventually(lambda: widget.is_ready("b"))
    assert (bug["kind"], bug["namespace"], bug["name"]) == ("Widget", widget.namespace, "a")
    assert "a bug, as the test asked for" in bug["exception"]
    widget.apply("a", text="mended")
    eventually(lambda: widget.is_ready("a"))


def test_wish_to_be_looked_at_again_is_granted(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", lookAgain="500ms")
    eventually(lambda: widget.is_ready("a"))
    writes = operator.writes()
    passes = operator.metric("shipkeeper_reconcile_total")
    eventually(lambda: operator.metric("shipkeeper_reconcile_total") >= passes + 4)
    assert operator.writes() == writes


def test_events_say_transitions_once(operator: OperatorProcess, widget: Widgets, kubectl: Kubectl) -> None:
    widget.apply("a")
    eventually(lambda: widget.is_ready("a"))
    settle(operator)
    events = [
        (event["type"], event["reason"], event["regarding"]["name"], event["reportingController"])
        for event in kubectl.list("events.events.k8s.io", namespace=widget.namespace)
        if event["regarding"]["kind"] == "Widget"
    ]
    assert events == [("Normal", "Complete", "a", "shipkeeper.dev/operator")]


def test_spec_that_the_model_refuses_is_stalled_and_recovers(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a")
    eventually(lambda: widget.is_ready("a"))
    widget.apply("a", text="unfit")
    stalled = eventually(lambda: condition(widget.get("a"), "Stalled"))
    assert stalled["reason"] == "InvalidSpec"
    assert "spec.text" in stalled["message"]
    assert "write another one" in stalled["message"]
    status = widget.get("a")["status"]
    assert status["parts"] == 1, "what status said besides stays"
    assert status["observedGeneration"] == widget.get("a")["metadata"]["generation"]
    assert "unfit" not in stalled["message"], "what a person pasted is not repeated"
    widget.apply("a", text="fit")
    eventually(lambda: widget.is_ready("a"))


def test_child_that_the_api_server_refuses_is_stalled(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", deployment=True, memory="much")
    stalled = eventually(lambda: condition(widget.get("a"), "Stalled"))
    assert stalled["reason"] == "ChildRejected"
    assert "Deployment" in stalled["message"]
    assert "quantities" in stalled["message"]
    assert operator.metric("shipkeeper_reconcile_errors_total", reason="ChildRejected") >= 1
    widget.apply("a", deployment=True, memory="64Mi")
    eventually(lambda: widget.is_ready("a"))


def test_part_names_that_are_no_names_are_stalled(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", parts=["Not_A_Name"])
    stalled = eventually(lambda: condition(widget.get("a"), "Stalled"))
    assert stalled["reason"] == "ChildRejected"
