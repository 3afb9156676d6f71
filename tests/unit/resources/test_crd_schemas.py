"""The schemas of the real kinds: structural, described, bounded, and in agreement with the models."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonpath_ng.ext.parser import parse as parse_json_path

from shipkeeper.resources import KINDS
from shipkeeper.resources.crd import custom_resource_definition, resource_schema
from shipkeeper.resources.kinds import Kind
from shipkeeper.resources.schema import Schema, structural_schema, walk
from support.structural import complete_objects, held_paths, pruned, valid_specs

# Objects that Kubernetes defines, embedded as they are.
FOREIGN = {
    ("AppDeployment", "spec.podTemplate.spec"),
    ("AppDeployment", "spec.networkPolicy.egress[]"),
}

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


def nodes(kind: Kind) -> Iterator[tuple[str, Schema]]:
    return (found for found in walk(resource_schema(kind)) if found[0] not in ("", "metadata"))


@every_kind
def test_every_field_is_described(kind: Kind) -> None:
    undescribed = [
        path for path, node in nodes(kind) if not path.endswith(("[]", "{}")) and not node.get("description")
    ]
    assert undescribed == []


@every_kind
def test_a_description_is_a_sentence(kind: Kind) -> None:
    wrong = [
        path for path, node in nodes(kind) if "description" in node and not node["description"].endswith((".", "?"))
    ]
    assert wrong == []


@every_kind
def test_every_array_and_map_is_bounded(kind: Kind) -> None:
    unbounded = [
        path
        for path, node in nodes(kind)
        if (node.get("type") == "array" and "maxItems" not in node)
        or ("additionalProperties" in node and "maxProperties" not in node)
    ]
    assert unbounded == []


@every_kind
def test_every_string_is_bounded(kind: Kind) -> None:
    unbounded = [
        path
        for path, node in nodes(kind)
        if node.get("type") == "string"
        and not {"maxLength", "enum"} & set(node)
        and node.get("format") != "date-time"
        and path not in ("apiVersion", "kind")
    ]
    assert unbounded == []


@every_kind
def test_every_integer_is_bounded_below(kind: Kind) -> None:
    assert [path for path, node in nodes(kind) if node.get("type") == "integer" and "minimum" not in node] == []


@every_kind
def test_only_foreign_objects_keep_unknown_fields(kind: Kind) -> None:
    keeping = {(kind.kind, path) for path, node in nodes(kind) if "x-kubernetes-preserve-unknown-fields" in node}
    assert keeping == {(owner, path) for owner, path in FOREIGN if owner == kind.kind}


@every_kind
def test_no_map_of_objects_and_no_float(kind: Kind) -> None:
    maps = [
        path for path, node in nodes(kind) if node.get("additionalProperties", {}).get("type", "string") != "string"
    ]
    floats = [path for path, node in nodes(kind) if node.get("type") == "number"]
    assert (maps, floats) == ([], [])


@every_kind
def test_enum_values_are_camel_case(kind: Kind) -> None:
    """And none of them is a word that YAML takes for null."""
    values = [
        (path, value)
        for path, node in nodes(kind)
        for value in node.get("enum", ())
        if value and (not value[0].isupper() or not value.isalnum() or value in ("Null", "NULL"))
    ]
    assert values == []


@every_kind
def test_list_maps_are_keyed_by_required_fields(kind: Kind) -> None:
    for path, node in nodes(kind):
        if node.get("x-kubernetes-list-type") == "map":
            keys, items = node["x-kubernetes-list-map-keys"], node["items"]
            assert [
                key for key in keys if key not in items["required"] and "default" not in items["properties"][key]
            ] == [], path


@every_kind
def test_every_list_of_named_things_is_a_list_map(kind: Kind) -> None:
    named = [
        path
        for path, node in nodes(kind)
        if "name" in node.get("items", {}).get("properties", {}) and node.get("x-kubernetes-list-type") != "map"
    ]
    assert named == []


@every_kind
def test_status_has_no_defaults(kind: Kind) -> None:
    assert [path for path, node in nodes(kind) if path.startswith("status") and "default" in node] == []


@every_kind
def test_rule_messages_tell_apart_the_rules_of_one_place(kind: Kind) -> None:
    for path, node in walk(resource_schema(kind)):
        messages = [rule["message"] for rule in node.get("x-kubernetes-validations", ())]
        assert len(messages) == len(set(messages)), path
        assert not [message for message in messages if "\n" in message], path


@every_kind
def test_complete_objects_hold_every_field(kind: Kind) -> None:
    schema = resource_schema(kind)
    held = {path for each in complete_objects(kind) for path in held_paths(each, schema)}
    assert {path for path, _ in walk(schema)} - held == set()


@every_kind
def test_complete_objects_are_valid(kind: Kind) -> None:
    for each in complete_objects(kind):
        assert kind.parse(each).metadata.name == each["metadata"]["name"]


@every_kind
def test_what_a_model_writes_survives_pruning(kind: Kind) -> None:
    for each in complete_objects(kind):
        resource = kind.parse(each)
        spec = resource.spec.to_wire()
        assert pruned(spec, structural_schema(kind.spec)) == spec
        if resource.status is not None:
            status = resource.status.to_wire()
            assert pruned(status, structural_schema(kind.status)) == status


@every_kind
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_random_valid_spec_survives_pruning(kind: Kind, data: st.DataObject) -> None:
    written = kind.spec.model_validate(data.draw(valid_specs(kind.spec))).to_wire()
    assert pruned(written, structural_schema(kind.spec)) == written


@every_kind
def test_pruning_drops_an_unknown_field(kind: Kind) -> None:
    """The comparison above could not fail if the pruning kept everything."""
    spec = complete_objects(kind)[0]["spec"]
    assert pruned({**spec, "unheardOf": 1}, structural_schema(kind.spec)) == spec


@every_kind
def test_every_printer_column_resolves(kind: Kind) -> None:
    objects = [{"metadata": {"creationTimestamp": "2026-03-01T09:30:00Z"}, **each} for each in complete_objects(kind)]
    for each in objects:
        each["metadata"] = {**each["metadata"], "creationTimestamp": "2026-03-01T09:30:00Z"}
    unresolved = [
        column.name for column in kind.columns if not any(_resolves(column.json_path, each) for each in objects)
    ]
    assert unresolved == []


def _resolves(json_path: str, document: dict[str, Any]) -> bool:
    python_path = "$" + json_path.replace("?(@.type==", "?(@.type == ")
    return bool(parse_json_path(python_path).find(document))


@every_kind
def test_columns_begin_with_state_and_hold_age(kind: Kind) -> None:
    always = [column.name for column in kind.columns if not column.priority]
    assert always[-1] == "Age"
    assert len(always) <= 9


@every_kind
def test_names(kind: Kind) -> None:
    spec: Any = custom_resource_definition(kind)["spec"]
    assert spec["names"]["categories"] == ["shipkeeper"]
    assert spec["names"]["listKind"] == f"{kind.kind}List"
    assert spec["names"]["singular"] == kind.kind.lower()
    (version,) = spec["versions"]
    assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)
    assert "status" in version["subresources"]
    assert ("scale" in version["subresources"]) == (kind.kind == "AppDeployment")
