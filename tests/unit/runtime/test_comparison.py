"""When a live object needs no write, and when it does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipkeeper_operator.comparison import APPLIED_ANNOTATION, digest, fingerprint, satisfies, with_digest

JSON = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_everything_satisfies_itself(value: Any) -> None:
    assert satisfies(value, value)


@given(st.dictionaries(st.text(min_size=1, max_size=3), JSON, max_size=4))
def test_what_others_add_beside_does_not_matter(desired: dict[str, Any]) -> None:
    assert satisfies({**desired, "added by others": 1}, desired)


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        ({}, {"hostNetwork": False}),
        ({}, {"annotations": {}}),
        ({}, {"args": []}),
        ({}, {"replicas": 0}),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1000m"}}),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1024Mi"}}),
        ({"requests": {"cpu": "1"}}, {"requests": {"cpu": 1}}),
        ({"sizeLimit": "1Gi"}, {"sizeLimit": "1024Mi"}),
        ({"data": {"k": "djE="}}, {"stringData": {"k": "v1"}}),
        ({"env": [{"name": "X", "value": "1"}, {"name": "A", "value": "2"}]}, {"env": [{"name": "A", "value": "2"}]}),
        (
            {
                "ports": [
                    {"containerPort": 80, "protocol": "UDP"},
                    {"containerPort": 80, "protocol": "TCP", "name": "h"},
                ]
            },
            {"ports": [{"containerPort": 80}]},
        ),
        (
            {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30000}]},
            {"ports": [{"port": 80, "targetPort": 8080}]},
        ),
        ({"finalizers": ["a", "b"]}, {"finalizers": ["b"]}),
        ({"tolerations": [{"key": "a", "effect": "X"}]}, {"tolerations": [{"key": "a"}]}),
    ],
)
def test_needs_no_write(live: Any, desired: Any) -> None:
    assert satisfies(live, desired)


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        ({}, {"replicas": 1}),
        ({"replicas": 3}, {"replicas": 0}),
        ({"enableServiceLinks": True}, {"enableServiceLinks": False}),
        ({"image": "a"}, {"image": "b"}),
        ({"port": "80"}, {"port": 80}),
        ({"flag": 1}, {"flag": True}),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "lots"}}),
        ({"limits": {}}, {"limits": {"cpu": "2"}}),
        ({"labels": {"cpu": "1"}}, {"labels": {"cpu": "1000m"}}),
        ({"data": {"k": "djE="}}, {"stringData": {"k": "v2"}}),
        ({"args": ["a", "b"]}, {"args": ["a"]}),
        ({"args": ["a", "b"]}, {"args": ["b", "a"]}),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]}),
        ({"ports": [{"containerPort": 80, "protocol": "UDP"}]}, {"ports": [{"containerPort": 80}]}),
        ({"ports": [{"port": 80}, {"port": 81}]}, {"ports": [{"port": 80}]}),
        ({"a": None}, {"a": {"b": 1}}),
        ({"a": 5}, {"a": [1]}),
        ({"a": 5}, {"a": {"b": 1}}),
    ],
)
def test_needs_a_write(live: Any, desired: Any) -> None:
    assert not satisfies(live, desired)


def test_digest_is_of_the_content_alone() -> None:
    manifest: dict[str, Any] = {"kind": "A", "metadata": {"name": "x", "annotations": {"theirs": "kept"}}}
    assert digest(manifest) == digest({"metadata": {"annotations": {"theirs": "kept"}, "name": "x"}, "kind": "A"})
    assert digest(manifest) != digest({**manifest, "data": {}})
    sent = with_digest(manifest)
    assert sent["metadata"]["annotations"] == {"theirs": "kept", APPLIED_ANNOTATION: digest(manifest)}
    assert manifest["metadata"]["annotations"] == {"theirs": "kept"}, "the manifest itself is not changed"


def test_fingerprint_ignores_status_and_versions() -> None:
    live = {"metadata": {"name": "x", "resourceVersion": "1", "generation": 1}, "spec": {"a": 1}, "status": {"s": 1}}
    same = {"metadata": {"name": "x", "resourceVersion": "9", "generation": 3}, "spec": {"a": 1}, "status": {}}
    assert fingerprint(live) == fingerprint(same)
    assert fingerprint(live) != fingerprint({**live, "spec": {"a": 2}})
    labelled = {**live, "metadata": {"name": "x", "labels": {"a": "b"}}}
    assert fingerprint(live) != fingerprint(labelled)
