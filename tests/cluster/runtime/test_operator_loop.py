"""The loop against a real API server: what it writes, what it leaves alone, what it repairs."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from demo.kubectl import Kubectl
from support.apiserver import eventually
from support.operator_process import OperatorProcess

from .conftest import Widgets


def _settle(operator: OperatorProcess) -> dict[str, int]:
    """Return the writes once no pass was made for a second."""

    def is_quiet() -> bool:
        before = operator.metric("shipkeeper_reconcile_total")
        time.sleep(1)
        return operator.metric("shipkeeper_reconcile_total") == before

    eventually(is_quiet, timeout=60, what="an operator at rest")
    return operator.writes()


def test_brings_up_with_one_write_per_child_and_one_status(
    operator: OperatorProcess, widget: Widgets, kubectl: Kubectl
) -> None:
    widget.apply("a", parts=["one", "two"])
    eventually(lambda: widget.is_ready("a"))
    writes = _settle(operator)
    assert writes == {"apply ConfigMap": 2, "apply Widget/status": 1, "create Event": 1}
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
    before = _settle(operator)
    time.sleep(5)
    assert operator.writes() == before


def test_restart_changes_nothing(
    new_operator: Callable[..., OperatorProcess], widget: Widgets, namespace: str, kubectl: Kubectl
) -> None:
    with new_operator() as first:
        first.wait_leading()
        for name in ("a", "b"):
            widget.apply(name, deployment=True, stored=True, memory="1024Mi")
        eventually(lambda: widget.is_ready("a") and widget.is_ready("b"))
        _settle(first)
    versions = _versions(kubectl, namespace)
    with new_operator("replica-b") as second:
        second.wait_leading()
        eventually(lambda: second.metric("shipkeeper_reconcile_total", result="success") >= 2)
        assert _settle(second) == {}
    assert _versions(kubectl, namespace) == versions


def _versions(kubectl: Kubectl, namespace: str) -> dict[str, str]:
    kinds = ("widgets", "configmaps", "deployments")
    return {
        f"{kind}/{found['metadata']['name']}": found["metadata"]["resourceVersion"]
        for kind in kinds
        for found in kubectl.list(kind, namespace=namespace)
    }


def test_burst_of_changes_makes_few_passes_and_ends_at_the_last(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", text="first")
    eventually(lambda: widget.is_ready("a"))
    _settle(operator)
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
    _settle(operator)
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
    before = _settle(operator)
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
    kubectl.run("create", "configmap", "bystander", "-n", widget.namespace)
    widget.apply("a", parts=["one", "two"], deployment=True)
    eventually(lambda: widget.is_ready("a"))
    widget.apply("a", parts=["two"])
    eventually(lambda: widget.configmap("a-one") is None)
    eventually(lambda: kubectl.get("deployment", "a", namespace=widget.namespace) is None)
    assert widget.configmap("a-two") is not None
    assert widget.configmap("bystander") is not None
    writes = _settle(operator)
    assert {what: count for what, count in writes.items() if what.startswith("delete")} == {
        "delete ConfigMap": 1,
        "delete Deployment": 1,
    }


def test_object_of_somebody_else_is_never_taken(operator: OperatorProcess, widget: Widgets, kubectl: Kubectl) -> None:
    kubectl.run("create", "configmap", "a-one", "-n", widget.namespace, "--from-literal=text=theirs")
    widget.apply("a")
    stalled = eventually(lambda: _condition(widget.get("a"), "Stalled"))
    assert stalled["reason"] == "NameTaken"
    assert "ConfigMap" in stalled["message"]
    assert "a-one" in stalled["message"]
    child = widget.configmap("a-one")
    assert child is not None
    assert child["data"] == {"text": "theirs"}
    kubectl.run("delete", "configmap", "a-one", "-n", widget.namespace)
    widget.apply("a", text="mine")
    eventually(lambda: widget.is_ready("a"))


def _condition(found: dict[str, object], type_: str) -> dict[str, str] | None:
    status = found.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return next((each for each in conditions if each["type"] == type_), None)


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


def test_finalizer_guards_what_lies_outside(operator: OperatorProcess, widget: Widgets, tmp_path: Path) -> None:
    widget.apply("a", stored=True, text="kept")
    eventually(lambda: widget.is_ready("a"))
    found = widget.get("a")
    assert found["metadata"]["finalizers"] == ["shipkeeper.dev/finalizer"]
    stored = tmp_path / found["metadata"]["uid"]
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


def test_failed_effect_is_retried_and_recovers(
    new_operator: Callable[..., OperatorProcess], widget: Widgets, tmp_path: Path
) -> None:
    away = tmp_path / "not-there-yet"
    with new_operator(WIDGET_STORE=str(away)) as operator:
        operator.wait_leading()
        widget.apply("a", stored=True)
        eventually(lambda: _condition(widget.get("a"), "Reconciling"))
        eventually(lambda: operator.metric("shipkeeper_reconcile_errors_total", reason="EffectFailed") >= 3)
        writes = operator.writes()
        assert writes["apply Widget/status"] == 1, "a failure that repeats is said once"
        away.mkdir()
        eventually(lambda: widget.is_ready("a"))


def test_bug_is_counted_and_stops_nobody_else(operator: OperatorProcess, widget: Widgets) -> None:
    widget.apply("a", text="bug")
    eventually(lambda: operator.metric("shipkeeper_reconcile_errors_total", reason="InternalError") == 1)
    widget.apply("b")
    eventually(lambda: widget.is_ready("b"))
    bug = next(line for line in operator.log_lines() if line["level"] == "ERROR")
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
    _settle(operator)
    events = [
        (event["type"], event["reason"], event["regarding"]["name"], event["reportingController"])
        for event in kubectl.list("events.events.k8s.io", namespace=widget.namespace)
        if event["regarding"]["kind"] == "Widget"
    ]
    assert events == [("Normal", "Complete", "a", "shipkeeper.dev/operator")]
