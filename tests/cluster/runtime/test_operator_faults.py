"""What befalls the operator: a restart, a dead leader, a dead API server, a failing effect. Each test has its own."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from demo.kubectl import Kubectl
from support.apiserver import ApiServer, eventually
from support.operator_process import OperatorProcess

from .conftest import Widgets, condition, settle

NewOperator = Callable[..., OperatorProcess]


def test_standby_is_ready_and_does_nothing(new_operator: NewOperator, widget: Widgets) -> None:
    with new_operator("replica-a") as first:
        first.wait_leading()
        with new_operator("replica-b") as second:
            second.wait_ready()
            widget.apply("a")
            eventually(lambda: widget.is_ready("a"))
            assert first.probe("/readyz")[1]["checks"]["role"] == "leader"
            assert second.probe("/readyz")[1]["checks"]["role"] == "standby"
            assert second.probe("/healthz")[0] == 200
            assert second.metric("shipkeeper_leader") == 0
            assert second.metric("shipkeeper_reconcile_total") == 0
            assert second.writes() == {}


def test_killed_leader_is_replaced(new_operator: NewOperator, widget: Widgets, kubectl: Kubectl) -> None:
    with new_operator("replica-a") as first, new_operator("replica-b") as second:
        first.wait_ready()
        second.wait_ready()
        eventually(lambda: first.metric("shipkeeper_leader") + second.metric("shipkeeper_leader") == 1)
        leader, standby = (first, second) if first.metric("shipkeeper_leader") else (second, first)
        widget.apply("a")
        eventually(lambda: widget.is_ready("a"))
        leader.kill()
        widget.apply("b")
        eventually(lambda: widget.is_ready("b"), timeout=30)
        assert standby.metric("shipkeeper_leader") == 1
        assert standby.metric("shipkeeper_reconcile_total", result="success") >= 2
        lease = kubectl.get("lease", "shipkeeper-operator", namespace=widget.namespace)
        assert lease is not None
        assert lease["spec"]["leaseTransitions"] >= 1


def test_frozen_leader_never_writes_beside_its_successor(new_operator: NewOperator, widget: Widgets) -> None:
    with new_operator("replica-a") as first:
        first.wait_leading()
        widget.apply("a")
        eventually(lambda: widget.is_ready("a"))
        before = first.writes()
        with new_operator("replica-b") as second:
            second.wait_ready()
            first.process.send_signal(signal.SIGSTOP)
            eventually(lambda: second.metric("shipkeeper_leader") == 1, timeout=30)
            widget.apply("a", text="while the first slept")
            eventually(lambda: widget.is_ready("a"))
            first.process.send_signal(signal.SIGCONT)
            try:
                # It finds out by itself and ends; until then its writes are refused.
                assert first.process.wait(30) == 1
            finally:
                print(first.log_text())
            messages = [line["message"] for line in first.log_lines()]
            assert any("the Lease was not renewed" in each or "another replica holds" in each for each in messages)
            assert second.metric("shipkeeper_leader") == 1
        assert before  # It had written before it was frozen.


def test_stopped_leader_hands_over_at_once(new_operator: NewOperator, widget: Widgets, kubectl: Kubectl) -> None:
    with new_operator("replica-a") as first:
        first.wait_leading()
        with new_operator("replica-b") as second:
            second.wait_ready()
            assert first.stop() == 0
            lease = kubectl.get("lease", "shipkeeper-operator", namespace=widget.namespace)
            assert lease is not None
            assert lease["spec"].get("holderIdentity", "") in ("", "replica-b"), "given back, not left to expire"
            widget.apply("a")
            eventually(lambda: widget.is_ready("a"))
            assert second.stop() == 0


def test_killed_api_server_is_survived(new_operator: NewOperator, widget_api: ApiServer, widget: Widgets) -> None:
    with new_operator() as operator:
        operator.wait_leading()
        widget.apply("a", deployment=True)
        eventually(lambda: widget.is_ready("a"))
        widget_api.kill_api_server()
        widget_api.control_plane.start()  # Waits until it answers again.

        def change_is_followed() -> bool:
            if operator.process.poll() is not None:
                assert operator.process.returncode == 1
                operator.start()  # As the kubelet does when the Lease could not be renewed in time.
            return widget.is_ready("a")

        eventually(lambda: widget.kubectl.get("widget", "a", namespace=widget.namespace) is not None)
        widget.apply("a", text="after the fall", deployment=True)
        eventually(change_is_followed, timeout=60)
        eventually(lambda: (widget.configmap("a-one") or {})["data"]["text"] == "after the fall", timeout=60)
        widget.kubectl.run("delete", "configmap", "a-one", "-n", widget.namespace)
        eventually(lambda: widget.configmap("a-one"), timeout=60, what="a repaired child: the watches live")


def test_operator_waits_for_its_crds(new_operator: NewOperator, widget: Widgets, widget_api: ApiServer) -> None:
    """Started before the CRDs are there, it is not ready, says why, and begins when they come."""
    from shipkeeper.resources.crd import custom_resource_definition
    from support import widgets

    widget_api.kubectl.run("delete", "crd", "widgets.shipkeeper.dev")
    try:
        with new_operator() as operator:
            eventually(lambda: any("install crds/" in line["message"] for line in operator.log_lines()))
            status, answer = operator.probe("/readyz")
            assert status == 503
            assert answer["checks"]["cache"] == "incomplete"
            assert operator.probe("/healthz")[0] == 200
            widget_api.kubectl.apply(custom_resource_definition(widgets.KIND))
            operator.wait_leading()
            widget.apply("a")
            eventually(lambda: widget.is_ready("a"))
    finally:
        widget_api.kubectl.apply(custom_resource_definition(widgets.KIND))
        widget_api.kubectl.run("wait", "--for=condition=Established", "crd/widgets.shipkeeper.dev", "--timeout=30s")


def test_sigterm_ends_it_even_before_it_is_ready(new_operator: NewOperator) -> None:
    with new_operator() as operator:
        assert operator.port
        assert operator.stop() == 0


def test_slow_resync_only_reads(new_operator: NewOperator, widget: Widgets) -> None:
    with new_operator(SHIPKEEPER_RESYNC_SECONDS="2") as operator:
        operator.wait_leading()
        widget.apply("a", deployment=True)
        eventually(lambda: widget.is_ready("a"))
        eventually(lambda: operator.metric("shipkeeper_watch_lists_total", kind="Widget") >= 2)
        time.sleep(1)
        writes = operator.writes()
        passes = operator.metric("shipkeeper_reconcile_total")
        lists = operator.metric("shipkeeper_watch_lists_total", kind="Widget", result="compared")
        eventually(lambda: operator.metric("shipkeeper_reconcile_total") > passes + 1)
        eventually(lambda: operator.metric("shipkeeper_watch_lists_total", kind="Widget", result="compared") > lists)
        assert operator.writes() == writes


def test_wrong_setting_is_named(new_operator: NewOperator) -> None:
    operator = new_operator(SHIPKEEPER_HTTP_PORT="many").start()
    assert operator.process.wait(30) == 1
    assert "SHIPKEEPER_HTTP_PORT" in operator.log_text()


def test_missing_kubeconfig_is_said(new_operator: NewOperator) -> None:
    operator = new_operator(KUBECONFIG="/nonexistent/config").start()
    assert operator.process.wait(30) == 2
    assert "KUBECONFIG" in operator.log_text()


def test_restart_changes_nothing(
    new_operator: Callable[..., OperatorProcess], widget: Widgets, namespace: str, kubectl: Kubectl
) -> None:
    with new_operator() as first:
        first.wait_leading()
        for name in ("a", "b"):
            widget.apply(name, deployment=True, stored=True, memory="1024Mi")
        eventually(lambda: widget.is_ready("a") and widget.is_ready("b"))
        settle(first)
    versions = _versions(kubectl, namespace)
    with new_operator("replica-b") as second:
        second.wait_leading()
        eventually(lambda: second.metric("shipkeeper_reconcile_total", result="success") >= 2)
        assert settle(second) == {}
    assert _versions(kubectl, namespace) == versions


def _versions(kubectl: Kubectl, namespace: str) -> dict[str, str]:
    kinds = ("widgets", "configmaps", "deployments")
    return {
        f"{kind}/{found['metadata']['name']}": found["metadata"]["resourceVersion"]
        for kind in kinds
        for found in kubectl.list(kind, namespace=namespace)
    }


def test_failed_effect_is_retried_and_recovers(
    new_operator: Callable[..., OperatorProcess], widget: Widgets, tmp_path: Path
) -> None:
    away = tmp_path / "not-there-yet"
    with new_operator(WIDGET_STORE=str(away)) as operator:
        operator.wait_leading()
        widget.apply("a", stored=True)
        eventually(lambda: condition(widget.get("a"), "Reconciling"))
        eventually(lambda: operator.metric("shipkeeper_reconcile_errors_total", reason="EffectFailed") >= 3)
        writes = operator.writes()
        assert writes["apply Widget/status"] == 1, "a failure that repeats is said once"
        away.mkdir()
        eventually(lambda: widget.is_ready("a"))
