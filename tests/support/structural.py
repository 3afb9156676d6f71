"""What the API server does with a structural schema, in plain Python, and objects to try it on.

Pruning is written here a second time on purpose: the tests compare it with what the schema generator says and, against
a real API server, with what the server does.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from hypothesis import reject
from hypothesis import strategies as st
from pydantic import ValidationError

from shipkeeper.resources.base import ResourceModel
from shipkeeper.resources.kinds import Kind
from shipkeeper.resources.schema import schema_with_references

COMPLETE = Path(__file__).parent / "complete"
_ATTEMPTS = 30
_EXACTLY_ONE = re.compile(
    r"\(has\(self\.\w+\) \? 1 : 0\)( \+ \(has\(self\.\w+\) \? 1 : 0\))+ == 1|has\(self\.\w+\) != has\(self\.\w+\)"
    r"|\[has\(self\.\w+\)(, has\(self\.\w+\))+\]\.exists_one\(x, x\)"
)


def complete_objects(kind: Kind) -> list[dict[str, Any]]:
    """Return the objects that together hold every field of a kind, its status included."""
    return list(yaml.safe_load_all((COMPLETE / f"{kind.singular}.yaml").read_text()))


def pruned(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return what the API server keeps of a value: fields that the schema knows."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [pruned(item, schema["items"]) for item in value]
    if "additionalProperties" in schema:
        return {key: pruned(item, schema["additionalProperties"]) for key, item in value.items()}
    properties = schema.get("properties", {})
    return {key: pruned(item, properties[key]) for key, item in value.items() if key in properties}


def held_paths(value: Any, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of every schema node that a value reaches, as `shipkeeper.resources.schema.walk` writes paths."""
    yield path
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, list):
        for item in value:
            yield from held_paths(item, schema["items"], f"{path}[]")
    elif isinstance(value, dict) and "additionalProperties" in schema:
        for item in value.values():
            yield from held_paths(item, schema["additionalProperties"], f"{path}{{}}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in schema.get("properties", {}):
                yield from held_paths(item, schema["properties"][key], f"{path}.{key}" if path else key)


def valid_specs(model: type[ResourceModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of specs on the wire that the model accepts, drawn from its own schema."""
    schema = schema_with_references(model)
    models = _models_within(model)
    return st.composite(lambda draw: _draw_valid(draw, model, schema, schema.get("$defs", {}), models))()


def _models_within(model: type[ResourceModel]) -> dict[str, type[ResourceModel]]:
    found: dict[str, type[ResourceModel]] = {model.__name__: model}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, ResourceModel):
            if annotation.__name__ not in found:
                found.update(_models_within(annotation))
            return
        for argument in get_args(annotation):
            visit(argument)

    for field in model.model_fields.values():
        visit(field.annotation)
    return found


def _draw_valid(draw: Any, model: type[ResourceModel], schema: Any, definitions: Any, models: Any) -> dict[str, Any]:
    """Draw until the model accepts: validators say what a schema cannot, such as exactly one of five fields."""
    for _ in range(_ATTEMPTS):
        candidate = _draw_object(draw, schema, definitions, models)
        try:
            model.model_validate(candidate)
        except ValidationError:
            continue
        return candidate
    return reject()


def _draw_object(draw: Any, schema: Any, definitions: Any, models: Any) -> dict[str, Any]:
    required = schema.get("required", [])
    alternatives = _alternatives(schema)
    bound = {*required, *(name for names in alternatives for name in names)}
    free = [name for name in schema["properties"] if name not in bound]
    chosen = {*required, *(draw(_one_of(tuple(names))) for names in alternatives)}
    if free:
        chosen.update(draw(_some_of(tuple(free))))
    return {
        name: _draw_value(draw, node, definitions, models)
        for name, node in schema["properties"].items()
        if name in chosen
    }


def _alternatives(schema: Any) -> list[list[str]]:
    """Return the groups of fields of which exactly one may be set, by the rules: drawn blindly, few would be valid."""
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", ())]
    return [re.findall(r"has\(self\.(\w+)\)", rule) for rule in rules if _EXACTLY_ONE.fullmatch(rule)]


def _draw_value(draw: Any, node: Any, definitions: Any, models: Any) -> Any:
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        return _draw_valid(draw, models[name], definitions[name], definitions, models)
    if "enum" in node:
        return draw(_one_of(tuple(node["enum"])))
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return {"unknown": {"to": ["the", {"schema": 1}]}}
    match node.get("type"):
        case "array":
            return _draw_list(draw, node, definitions, models)
        case "object":
            keys = draw(_some_of(("team", "tier", "app.example.com/part", "x")))
            return {key: _draw_value(draw, node["additionalProperties"], definitions, models) for key in keys}
        case "boolean":
            return draw(st.booleans())
        case "integer":
            return draw(st.integers(node.get("minimum", -(2**31)), node.get("maximum", 2**31 - 1)))
        case _:
            return draw(_text(node))


def _draw_list(draw: Any, node: Any, definitions: Any, models: Any) -> list[Any]:
    least = node.get("minItems", 0)
    size = draw(st.integers(least, min(least + 2, node.get("maxItems", least + 2))))
    items = [_draw_value(draw, node["items"], definitions, models) for _ in range(size)]
    keys = node.get("x-kubernetes-list-map-keys")
    if keys:
        return list({tuple(item.get(key) for key in keys): item for item in items}.values())
    return list(dict.fromkeys(items)) if node.get("x-kubernetes-list-type") == "set" else items


def _text(node: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if _is_time_zone(node):
        return _TIME_ZONES
    if node.get("format") == "date":
        return _DATES
    if "pattern" in node:
        return _matching(node["pattern"], node.get("maxLength", 64))
    return _any_text(node.get("minLength", 0), min(node.get("maxLength", 12), 12))


# Kept, because Hypothesis examines each new strategy at length.
_TIME_ZONES = st.sampled_from(["UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Etc/GMT+5"])
_DATES = st.dates().map(lambda each: each.isoformat())


# CEL's durations end at 292 years: the API server refuses a rule over a longer one, whatever the rule says.
_BEYOND_CEL = re.compile(r"[0-9]{6,}(\.[0-9]+)?[hm]")


@cache
def _one_of(values: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@cache
def _some_of(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=3)


@cache
def _matching(pattern: str, longest: int) -> st.SearchStrategy[str]:
    # `.` and negated sets match characters that no text on the wire has.
    matching = st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
    return matching.filter(lambda text: text.isprintable() and len(text) <= longest and not _BEYOND_CEL.search(text))


@cache
def _any_text(shortest: int, longest: int) -> st.SearchStrategy[str]:
    alphabet = st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"])
    return st.text(alphabet, min_size=shortest, max_size=longest)


def _is_time_zone(node: Mapping[str, Any]) -> bool:
    return any("getFullYear(self)" in rule["rule"] for rule in node.get("x-kubernetes-validations", ()))
