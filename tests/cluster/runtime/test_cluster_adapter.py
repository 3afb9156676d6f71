"""The adapter itself against a real API server: comparisons with lists, finalizers, preconditions, Events."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes.aio import config
from kubernetes.aio.client import ApiException, Configuration

from demo.kubectl import Kubectl
from shipkeeper.resources.base import API_VERSION
from shipkeeper_operator.cluster import Cluster
from shipkeeper_operator.connection import Connection
from shipkeeper_operator.errors import NotLeadingError, StaleReadError, StatusRejectedError
from shipkeeper_operator.events import EventRecorder
from shipkeeper_operator.kinds import CHILDREN, POD, UNWATCHED, own_kind
from shipkeeper_operator.metrics import Metrics
from shipkeeper_operator.reconcile.outcome import Event
from support import widgets
from support.apiserver import ApiServer


@pytest.fixture
async def cluster(widget_api: ApiServer, namespace: str) -> AsyncIterator[Cluster]:
    configuration = Configuration()
    await config.load_kube_config(str(widget_api.kubeconfig), client_configuration=configuration)
    connection = Connection(configuration)
    yield Cluster(
        connection.dynamic_client(),
        kinds=(own_kind(widgets.KIND), *CHILDREN, POD, *UNWATCHED),
        own_kinds=frozenset({"Widget"}),
        metrics=Metrics(),
        namespaces=[namespace],
    )
    await connection.close()


def _labelled(namespace: str, name: str, **data: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "shipkeeper"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _widget(namespace: str, name: str = "a") -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Widget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {},
    }


async def test_list_finds_what_no_event_told(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    kubectl.apply(_labelled(namespace, "stays"), _labelled(namespace, "goes"), _labelled(namespace, "changes", a="1"))
    kubectl.run("create", "configmap", "foreign", "-n", namespace)
    first = await cluster.compare_with_server("ConfigMap")
    assert sorted(found["metadata"]["name"] for found in first.changed) == ["changes", "goes", "stays"]
    assert first.gone == ()
    kubectl.run("delete", "configmap", "goes", "-n", namespace)
    kubectl.apply(_labelled(namespace, "changes", a="2"))
    second = await cluster.compare_with_server("ConfigMap")
    assert [(found["metadata"]["name"], found["data"]) for found in second.changed] == [("changes", {"a": "2"})]
    assert [found["metadata"]["name"] for found in second.gone] == ["goes"]
    assert cluster.get("ConfigMap", namespace, "goes") is None
    third = await cluster.compare_with_server("ConfigMap")
    assert (third.changed, third.gone) == ((), ())


async def test_long_lists_come_in_chunks(
    cluster: Cluster, kubectl: Kubectl, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipkeeper_operator.cluster.LIST_CHUNK", 3)
    kubectl.apply(*(_labelled(namespace, f"c{number}") for number in range(8)))
    assert len((await cluster.compare_with_server("ConfigMap")).changed) == 8
    assert (await cluster.compare_with_server("ConfigMap")).gone == ()


async def test_object_made_after_the_list_is_not_taken_for_gone(
    cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    kubectl.apply(_labelled(namespace, "old"))
    page = await cluster._list_chunk("ConfigMap", namespace=namespace, limit=10, token=None)
    kubectl.apply(_labelled(namespace, "new"))
    await cluster.compare_with_server("ConfigMap")
    listed = {item["metadata"]["uid"] for item in page["items"]}
    assert list(cluster._drop_unlisted("ConfigMap", listed, int(page["metadata"]["resourceVersion"]))) == []
    assert cluster.get("ConfigMap", namespace, "new") is not None


async def test_secret_is_read_and_not_kept(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    assert await cluster.secret(namespace, "credentials") is None
    kubectl.run("create", "secret", "generic", "credentials", "-n", namespace, "--from-literal=url=x")
    found = await cluster.secret(namespace, "credentials")
    assert found is not None
    assert found["data"] == {"url": "eA=="}
    assert cluster.get("Secret", namespace, "credentials") is None


async def test_finalizer_change_on_a_stale_read_writes_nothing(
    cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    kubectl.apply(_widget(namespace))
    await cluster.compare_with_server("Widget")
    stale = cluster.get("Widget", namespace, "a")
    assert stale is not None
    finalizers = {"metadata": {"finalizers": ["theirs.example/x"]}}
    kubectl.patch("widget", "a", finalizers, namespace=namespace)
    with pytest.raises(StaleReadError):
        await cluster.set_finalizer(stale, present=True)
    await cluster.compare_with_server("Widget")
    fresh = cluster.get("Widget", namespace, "a")
    assert fresh is not None
    held = await cluster.set_finalizer(fresh, present=True)
    assert held is not None
    assert held["metadata"]["finalizers"] == ["theirs.example/x", "shipkeeper.dev/finalizer"]
    assert await cluster.set_finalizer(held, present=True) is None
    kubectl.run("patch", "widget", "a", "-n", namespace, "--type=merge", '-p={"metadata":{"finalizers":null}}')


async def test_delete_takes_only_the_very_object(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    kubectl.apply(_labelled(namespace, "a"))
    await cluster.delete("ConfigMap", namespace, "a", uid="00000000-0000-0000-0000-000000000000")
    found = kubectl.get("configmap", "a", namespace=namespace)
    assert found is not None
    await cluster.delete("ConfigMap", namespace, "a", uid=found["metadata"]["uid"])
    assert kubectl.get("configmap", "a", namespace=namespace) is None
    await cluster.delete("ConfigMap", namespace, "a", uid=found["metadata"]["uid"])


async def test_status_of_a_deleted_and_remade_resource_is_not_written(
    cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    kubectl.apply(_widget(namespace))
    await cluster.compare_with_server("Widget")
    old = cluster.get("Widget", namespace, "a")
    assert old is not None
    kubectl.run("delete", "widget", "a", "-n", namespace)
    kubectl.apply(_widget(namespace))
    with pytest.raises(ApiException) as caught:
        await cluster.write_status(old, {"parts": 1})
    assert caught.value.status == 409


async def test_status_is_written_once_and_its_fields_go(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    kubectl.apply(_widget(namespace))
    await cluster.compare_with_server("Widget")

    async def write(**status: int) -> Any:
        found = cluster.get("Widget", namespace, "a")
        assert found is not None
        return await cluster.write_status(found, status)

    assert await write(parts=1, replicas=2)
    assert await write(parts=1, replicas=2) is None
    assert await write(parts=1)
    live = kubectl.get("widget", "a", namespace=namespace)
    assert live is not None
    assert live["status"] == {"parts": 1}
    with pytest.raises(StatusRejectedError):
        await write(parts=-1)


async def test_status_that_the_server_prunes_is_not_written_again(
    cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    """A newer operator beside an older CRD: the unknown field is dropped, and that is that."""
    kubectl.apply(_widget(namespace))
    await cluster.compare_with_server("Widget")
    found = cluster.get("Widget", namespace, "a")
    assert found is not None
    assert await cluster.write_status(found, {"parts": 1, "conditions": []})
    found = cluster.get("Widget", namespace, "a")
    assert found is not None
    assert await cluster.write_status(found, {"parts": 1, "conditions": []}) is None


async def test_process_without_the_lease_writes_nothing(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    cluster._may_write = lambda: False
    with pytest.raises(NotLeadingError):
        await cluster.apply(_labelled(namespace, "a"), owner_uid="x")
    with pytest.raises(NotLeadingError):
        await cluster.delete("ConfigMap", namespace, "a", uid="x")
    assert kubectl.get("configmap", "a", namespace=namespace) is None


async def test_kind_that_is_not_installed(cluster: Cluster, kubectl: Kubectl) -> None:
    assert await cluster.is_served("Widget")
    kubectl.run("delete", "crd", "widgets.shipkeeper.dev")
    try:
        while await cluster.is_served("Widget"):  # noqa: ASYNC110 - the API server tells nobody.
            await asyncio.sleep(0.05)
    finally:
        from shipkeeper.resources.crd import custom_resource_definition

        kubectl.apply(custom_resource_definition(widgets.KIND))
        kubectl.run("wait", "--for=condition=Established", "crd/widgets.shipkeeper.dev", "--timeout=30s")


async def test_event_that_repeats_is_one_event_that_counts(cluster: Cluster, kubectl: Kubectl, namespace: str) -> None:
    kubectl.apply(_widget(namespace))
    await cluster.compare_with_server("Widget")
    resource = cluster.get("Widget", namespace, "a")
    assert resource is not None
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    recorder = EventRecorder(cluster, instance="replica-a", metrics=Metrics(), now=lambda: now)
    event = Event("Warning", "StoreUnreachable", "x" * 3000)
    await recorder.record(resource, [event])
    now += timedelta(minutes=1)
    await recorder.record(resource, [event, event])
    (found,) = kubectl.list("events.events.k8s.io", namespace=namespace)
    assert found["series"]["count"] == 3
    assert (found["type"], found["reason"], found["regarding"]["name"]) == ("Warning", "StoreUnreachable", "a")
    assert len(found["note"]) == 1024
    kubectl.run("delete", "events.events.k8s.io", "--all", "-n", namespace)
    now += timedelta(minutes=1)
    await recorder.record(resource, [event])
    assert len(kubectl.list("events.events.k8s.io", namespace=namespace)) == 1
    now += timedelta(hours=1)
    await recorder.record(resource, [event])
    assert len(kubectl.list("events.events.k8s.io", namespace=namespace)) == 2


async def test_failing_event_fails_nothing(cluster: Cluster, namespace: str) -> None:
    metrics = Metrics()
    recorder = EventRecorder(cluster, instance="replica-a", metrics=metrics)
    metadata = {"name": "a", "namespace": "no-such-namespace", "uid": "u", "resourceVersion": "1"}
    resource = {"apiVersion": API_VERSION, "kind": "Widget", "metadata": metadata}
    await recorder.record(resource, [Event("Normal", "Complete", "done")])
    assert b'shipkeeper_events_emitted_total{result="failed",type="Normal"} 1.0' in metrics.exposition()
