"""The watch cache: what is newer wins, from whatever side and in whatever order it comes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipkeeper_operator.cache import WatchCache, trimmed


def _object(
    version: int, *, kind: str = "ConfigMap", name: str = "a", uid: str = "u1", **metadata: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version), **metadata},
        "data": {"version": str(version)},
    }


def test_newer_wins_and_older_is_no_news() -> None:
    cache = WatchCache()
    assert cache.put(_object(5))
    assert not cache.put(_object(5))
    assert not cache.put(_object(4))
    assert cache.put(_object(10))
    found = cache.get("ConfigMap", "n", "a")
    assert found is not None
    assert found["data"] == {"version": "10"}


@given(st.permutations([1, 2, 3, 9, 10, 11]))
def test_any_order_ends_at_the_newest(versions: list[int]) -> None:
    cache = WatchCache()
    news = [cache.put(_object(version)) for version in versions]
    found = cache.get("ConfigMap", "n", "a")
    assert found is not None
    assert found["data"] == {"version": "11"}
    assert news[0]


def test_deleted_object_is_not_brought_back_by_a_late_answer() -> None:
    cache = WatchCache()
    cache.put(_object(5))
    assert cache.remove("ConfigMap", ("n", "a"), uid="u1")
    assert not cache.put(_object(6))
    assert cache.get("ConfigMap", "n", "a") is None
    assert not cache.remove("ConfigMap", ("n", "a"), uid="u1")


def test_successor_of_the_same_name_survives_the_old_ones_deletion() -> None:
    cache = WatchCache()
    cache.put(_object(5))
    cache.put(_object(8, uid="u2"))
    assert not cache.remove("ConfigMap", ("n", "a"), uid="u1")
    assert cache.get("ConfigMap", "n", "a") is not None


def test_what_is_read_is_a_copy() -> None:
    cache = WatchCache()
    cache.put(_object(1))
    found = cache.get("ConfigMap", "n", "a")
    assert isinstance(found, dict)
    found["data"]["version"] = "changed"
    again = cache.get("ConfigMap", "n", "a")
    assert again is not None
    assert again["data"] == {"version": "1"}


def test_children_follow_their_owner_references() -> None:
    cache = WatchCache()
    mine = [{"uid": "owner", "kind": "Widget", "name": "w", "apiVersion": "x/v1"}]
    cache.put(_object(1, name="b", uid="ub", ownerReferences=mine))
    cache.put(_object(2, name="a", uid="ua", ownerReferences=mine))
    cache.put(_object(3, name="c", uid="uc"))
    assert [child["metadata"]["name"] for child in cache.children("ConfigMap", "owner")] == ["a", "b"]
    cache.put(_object(4, name="b", uid="ub"))  # Orphaned.
    assert [child["metadata"]["name"] for child in cache.children("ConfigMap", "owner")] == ["a"]
    cache.remove("ConfigMap", ("n", "a"), uid="ua")
    assert cache.children("ConfigMap", "owner") == []


def test_pods_are_found_by_all_their_labels() -> None:
    cache = WatchCache()
    cache.put(_object(1, kind="Pod", name="p1", uid="p1", labels={"app": "x", "tier": "web"}))
    cache.put(_object(2, kind="Pod", name="p2", uid="p2", labels={"app": "x"}))
    assert [pod["metadata"]["name"] for pod in cache.pods("n", {"app": "x"})] == ["p1", "p2"]
    assert [pod["metadata"]["name"] for pod in cache.pods("n", {"app": "x", "tier": "web"})] == ["p1"]
    assert cache.pods("other", {"app": "x"}) == []
    cache.put(_object(3, kind="Pod", name="p1", uid="p1", labels={"tier": "web"}))
    assert [pod["metadata"]["name"] for pod in cache.pods("n", {"app": "x"})] == ["p2"]
    with pytest.raises(ValueError, match="at least one label"):
        cache.pods("n", {})


def test_counts_names_and_versions() -> None:
    cache = WatchCache()
    cache.put(_object(7))
    assert cache.count("ConfigMap") == 1
    assert cache.count("Pod") == 0
    assert cache.names("ConfigMap") == [("n", "a")]
    assert list(cache.versions("ConfigMap")) == [(("n", "a"), "u1", 7)]


def test_trimmed_objects_lose_only_what_no_decision_needs() -> None:
    obj = _object(
        1,
        managedFields=[{"manager": "kubectl"}],
        annotations={"kubectl.kubernetes.io/last-applied-configuration": "{...}", "mine": "kept"},
        labels={"a": "b"},
    )
    small = trimmed(obj)
    assert small["metadata"]["annotations"] == {"mine": "kept"}
    assert "managedFields" not in small["metadata"]
    assert small["metadata"]["labels"] == {"a": "b"}
    assert small["data"] == obj["data"]


def test_trimmed_pod_keeps_what_says_how_it_does() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1", "annotations": {"big": "x"}},
        "spec": {
            "nodeName": "node",
            "volumes": [{"name": "v"}],
            "containers": [{"name": "c", "image": "i", "env": [{"name": "SECRET", "value": "x"}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"name": "c", "restartCount": 2}]},
    }
    assert trimmed(pod) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1"},
        "spec": {"nodeName": "node", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": 2}]},
    }
