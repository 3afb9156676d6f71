"""Every bound of the schemas on a real API server: a value past it, refused by the field's name, and one at it, not."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from shipkeeper.resources import KINDS
from shipkeeper.resources.crd import resource_schema
from shipkeeper.resources.kinds import Kind
from shipkeeper.resources.schema import Schema, walk
from support.dry_run import Admission, RefusedError
from support.paths import ABSENT, at, changed
from support.structural import complete_objects

Place = tuple[dict[str, Any], str]
"""An object and the path of a place in it."""
Attempt = tuple[str, Any, str, str]
"""A path and the value to put there; the field and the message of the refusal (the message's end, where it begins with
the value)."""

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


def places(kind: Kind) -> dict[str, tuple[Place, Schema]]:
    """Return for each path of the spec's schema its schema, and a place in a complete object that has it."""
    return _places(KINDS.index(kind))


@cache
def _places(index: int) -> dict[str, tuple[Place, Schema]]:
    kind = KINDS[index]
    schema = resource_schema(kind)
    found: dict[str, Place] = {}
    for document in complete_objects(kind):
        for path, concrete in _occurrences(document["spec"], schema["properties"]["spec"], "spec", "spec"):
            if path not in found or not at(*found[path]):  # A list with an item in it can be spoilt in more ways.
                found[path] = (document, concrete)
    return {path: (found[path], node) for path, node in walk(schema) if path.startswith("spec")}


def _occurrences(value: Any, schema: Schema, path: str, concrete: str) -> Iterator[tuple[str, str]]:
    yield path, concrete
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _occurrences(item, schema["items"], f"{path}[]", f"{concrete}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in schema.get("properties", {}):
                yield from _occurrences(item, schema["properties"][key], f"{path}.{key}", f"{concrete}.{key}")
            elif "additionalProperties" in schema and "." not in key:
                yield from _occurrences(item, schema["additionalProperties"], f"{path}{{}}", f"{concrete}.{key}")


def _minimum(node: Schema, field: str, _: Any) -> Attempt:
    return field, node["minimum"] - 1, field, f"{field} in body should be greater than or equal to {node['minimum']}"


def _maximum(node: Schema, field: str, _: Any) -> Attempt:
    return field, node["maximum"] + 1, field, f"{field} in body should be less than or equal to {node['maximum']}"


def _min_length(node: Schema, field: str, _: Any) -> Attempt:
    short = "a" * (node["minLength"] - 1)
    return field, short, field, f"{field} in body should be at least {node['minLength']} chars long"


def _max_length(node: Schema, field: str, _: Any) -> Attempt:
    return field, "a" * (node["maxLength"] + 1), field, f"may not be more than {node['maxLength']} bytes"


def _pattern(node: Schema, field: str, _: Any) -> Attempt:
    shortest = node.get("minLength", 0)
    strange = [
        text for text in ("%" * max(shortest, 1), "/" * max(shortest, 1)) if not re.search(node["pattern"], text)
    ]
    return field, strange[0], field, f"{field} in body should match '{node['pattern']}'"


def _enum(node: Schema, field: str, _: Any) -> Attempt:
    known = ", ".join(json.dumps(value) for value in node["enum"])
    return field, "Unheard", field, f'Unsupported value: "Unheard": supported values: {known}'


def _min_items(node: Schema, field: str, _: Any) -> Attempt:
    return field, [], field, f"{field} in body should have at least {node['minItems']} items"


def _max_items(node: Schema, field: str, value: Any) -> Attempt:
    items = (value * (node["maxItems"] + 1))[: node["maxItems"] + 1]
    return field, items, field, f"Too many: {len(items)}: must have at most {node['maxItems']} items"


def _max_properties(node: Schema, field: str, _: Any) -> Attempt:
    entries = {f"key-{index}": "a" for index in range(node["maxProperties"] + 1)}
    return field, entries, field, f"Too many: {len(entries)}: must have at most {node['maxProperties']} items"


def _list_type(_: Schema, field: str, value: Any) -> Attempt:
    return f"{field}[{len(value)}]", value[0], f"{field}[{len(value)}]", "Duplicate value: "


def _type(node: Schema, field: str, _: Any) -> Attempt:
    """A number where text is wanted, text where anything else is."""
    wrong: Any = 7 if node["type"] == "string" else "text"
    called = node.get("format", "string") if node["type"] == "string" else node["type"]
    return field, wrong, field, f"{field} in body must be of type {called}: "


ATTEMPTS: dict[str, Callable[[Schema, str, Any], Attempt]] = {
    "minimum": _minimum,
    "maximum": _maximum,
    "minLength": _min_length,
    "maxLength": _max_length,
    "pattern": _pattern,
    "enum": _enum,
    "minItems": _min_items,
    "maxItems": _max_items,
    "maxProperties": _max_properties,
    "x-kubernetes-list-type": _list_type,
    "type": _type,
}
OTHERS = {
    "required",  # Tested below.
    "x-kubernetes-validations",  # Tested case by case in test_admission_rules.py.
    "x-kubernetes-map-type",  # Says how managers share, bounds nothing.
    "x-kubernetes-list-map-keys",  # Goes with the list's type.
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    *("description", "format", "default", "properties", "items", "additionalProperties", "anyOf"),
}
bounded = pytest.mark.parametrize("keyword", ATTEMPTS)


@every_kind
def test_every_keyword_is_looked_at(kind: Kind) -> None:
    assert {keyword for _, node in places(kind).values() for keyword in node} - set(ATTEMPTS) - OTHERS == set()


@every_kind
@bounded
def test_past_a_bound_is_refused_by_the_name_of_the_field(admission: Admission, kind: Kind, keyword: str) -> None:
    unlike = []
    for (document, field), node in places(kind).values():
        if keyword not in node or (keyword == "x-kubernetes-list-type" and node[keyword] == "atomic"):
            continue
        path, value, named, message = ATTEMPTS[keyword](node, field, at(document, field))
        told = causes(admission, kind, changed(document, (path, value)))
        if not any(cause_field == named and message in said for cause_field, said in told):
            unlike.append((path, value if len(str(value)) < 80 else "...", told))
    assert unlike == []


@every_kind
@pytest.mark.parametrize("keyword", ["minimum", "maximum", "minLength", "maxLength", "enum"])
def test_at_a_bound_is_not_refused_for_it(admission: Admission, kind: Kind, keyword: str) -> None:
    refused = []
    for (document, field), node in places(kind).values():
        for value in _at_bound(keyword, node):
            told = causes(admission, kind, changed(document, (field, value)))
            # A rule over several fields may well object; the schema of the field must not.
            refused += [(field, value, said) for named, said in told if named == field and "in body" in said]
    assert refused == []


def _at_bound(keyword: str, node: Schema) -> list[Any]:
    if keyword not in node or (keyword in ("minLength", "maxLength") and "pattern" in node):
        return []
    bound = node[keyword]
    if keyword == "enum":
        return list(bound)
    return [bound] if keyword in ("minimum", "maximum") else ["a" * bound]


@every_kind
def test_a_missing_field_is_named(admission: Admission, kind: Kind) -> None:
    unlike = []
    for (document, field), node in places(kind).values():
        for name in node.get("required", ()):
            told = causes(admission, kind, changed(document, (f"{field}.{name}", ABSENT)))
            if not {(f"{field}.{name}", "Required value"), (f"{field}.{name}", "Required value: ")} & set(told):
                unlike.append((f"{field}.{name}", told))
    assert unlike == []


@every_kind
def test_an_unknown_field_is_named(admission: Admission, kind: Kind) -> None:
    """As kubectl asks by default: strictly."""
    unlike = []
    for (document, field), node in places(kind).values():
        if "properties" in node:
            with pytest.raises(RefusedError) as refused:
                admission.create(kind, changed(document, (f"{field}.unheardOf", 1)))
            if f'unknown field "{field}.unheardOf"' not in refused.value.message:
                unlike.append((field, refused.value.message))
    assert unlike == []


def causes(admission: Admission, kind: Kind, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return field and message of each cause for which an object is refused; none if it is not."""
    try:
        admission.create(kind, manifest)
    except RefusedError as refused:
        return [(cause.field, cause.message) for cause in refused.causes] or [("", refused.message)]
    return []
