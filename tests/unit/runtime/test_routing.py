"""Whom a changed object wakes."""

from typing import Any

from shipkeeper_operator.routing import Key, Routes

APP = Key("AppDeployment", "n", "app")
MIGRATION = Key("MigrationJob", "n", "move")


def _routes() -> Routes:
    return Routes(own_kinds=["AppDeployment", "MigrationJob"])


def _object(kind: str, name: str, *, namespace: str = "n", **metadata: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace, **metadata}}


def test_resource_wakes_itself() -> None:
    assert _routes().wakes(_object("AppDeployment", "app")) == {APP}


def test_child_wakes_its_owner_and_nobody_elses() -> None:
    ours = {"apiVersion": "shipkeeper.dev/v1alpha1", "kind": "AppDeployment", "name": "app", "uid": "u"}
    theirs = {"apiVersion": "example.org/v1", "kind": "AppDeployment", "name": "other", "uid": "v"}
    replicas = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app-1", "uid": "w"}
    child = _object("Deployment", "app", ownerReferences=[ours, theirs, replicas])
    assert _routes().wakes(child) == {APP}
    assert _routes().wakes(_object("Deployment", "app")) == frozenset()


def test_pod_wakes_whom_its_labels_name() -> None:
    routes = _routes()
    assert routes.wakes(_object("Pod", "p", labels={"shipkeeper.dev/appdeployment": "app"})) == {APP}
    assert routes.wakes(_object("Pod", "p", labels={"shipkeeper.dev/migrationjob": "move"})) == {MIGRATION}
    assert routes.wakes(_object("Pod", "p", labels={"shipkeeper.dev/ratelimitpolicy": "unserved"})) == frozenset()
    assert routes.wakes(_object("Pod", "p")) == frozenset()


def test_referred_object_wakes_its_referrers() -> None:
    routes = _routes()
    routes.refer(APP, [("MigrationJob", "move"), ("MigrationJob", "second")])
    assert routes.wakes(_object("MigrationJob", "move")) == {APP, MIGRATION}
    assert routes.wakes(_object("MigrationJob", "move", namespace="elsewhere")) == {
        Key("MigrationJob", "elsewhere", "move")
    }
    routes.refer(APP, [("MigrationJob", "second")])
    assert routes.wakes(_object("MigrationJob", "move")) == {MIGRATION}
    routes.refer(APP, [])
    assert routes.wakes(_object("MigrationJob", "second")) == {Key("MigrationJob", "n", "second")}
    assert routes._referrers == {}
    assert routes._references == {}
