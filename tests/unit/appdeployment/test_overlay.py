"""Strategic merge: by name, by path, by port; nulls remove; directives; errors that name the place."""

import pytest

from shipkeeper_operator.children.appdeployment_overlay import OverlayError, merged


def test_maps_are_merged_and_nulls_remove() -> None:
    before = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merged(before, {"a": {"y": None, "z": 4}, "c": 5}, path="p") == {"a": {"x": 1, "z": 4}, "b": 3, "c": 5}
    assert before == {"a": {"x": 1, "y": 2}, "b": 3}


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("containers", "name"),
        ("initContainers", "name"),
        ("volumes", "name"),
        ("env", "name"),
        ("imagePullSecrets", "name"),
        ("volumeMounts", "mountPath"),
        ("ports", "containerPort"),
        ("topologySpreadConstraints", "topologyKey"),
        ("hostAliases", "ip"),
    ],
)
def test_lists_are_merged_by_the_key_of_their_type(field: str, key: str) -> None:
    before = {field: [{key: "one", "value": 1}, {key: "two", "value": 2}]}
    result = merged(before, {field: [{key: "two", "value": 3}, {key: "three"}]}, path="p")
    assert result == {field: [{key: "one", "value": 1}, {key: "two", "value": 3}, {key: "three"}]}


def test_other_lists_are_replaced() -> None:
    assert merged({"args": ["a", "b"]}, {"args": ["c"]}, path="p") == {"args": ["c"]}
    assert merged({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]}, path="p") == {
        "tolerations": [{"key": "b"}]
    }


def test_directives_delete_an_element_and_replace_a_map() -> None:
    before = {"volumes": [{"name": "a"}, {"name": "b"}], "securityContext": {"runAsUser": 1, "runAsGroup": 2}}
    overlay = {
        "volumes": [{"name": "a", "$patch": "delete"}, {"name": "never", "$patch": "delete"}],
        "securityContext": {"$patch": "replace", "runAsUser": 3},
    }
    assert merged(before, overlay, path="p") == {"volumes": [{"name": "b"}], "securityContext": {"runAsUser": 3}}


def test_a_list_that_was_not_there_and_a_scalar_that_becomes_a_map() -> None:
    assert merged({}, {"env": [{"name": "A", "value": "1"}]}, path="p") == {"env": [{"name": "A", "value": "1"}]}
    assert merged({"a": 1}, {"a": {"b": 2}}, path="p") == {"a": {"b": 2}}


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"spec": {"containers": [{"image": "x"}]}}, r"p\.spec\.containers\[0\] needs the field name"),
        ({"spec": {"volumes": ["tmp"]}}, r"p\.spec\.volumes\[0\] needs the field name"),
        ({"spec": {"$patch": "merge"}}, r"p\.spec\.\$patch must be replace"),
        ({"containers": [{"name": "a", "$patch": "replaced"}]}, r"p\.containers\[0\]\.\$patch must be replace"),
    ],
)
def test_an_overlay_that_cannot_be_merged_names_the_place(overlay: dict[str, object], message: str) -> None:
    with pytest.raises(OverlayError, match=message):
        merged({"spec": {"containers": [{"name": "app"}]}}, overlay, path="p")
