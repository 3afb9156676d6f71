"""From a pydantic model to the structural schema that the API server wants.

JSON Schema as pydantic writes it is not what a CustomResourceDefinition may hold: references must be inlined, a null
is the absence of a field, titles and `additionalProperties: false` are not allowed, and every keyword the API server
does not know is refused. Two forms leave this module: with references (for the API reference, which has a table per
type) and inlined (for the CRD).
"""

import inspect
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from .base import ResourceModel

Schema = dict[str, Any]

_REFERENCE = "#/$defs/"
_INT32 = (-(2**31), 2**31 - 1)

# What a structural schema may hold, in the order in which it is written.
_KEYWORDS = (
    "$ref",
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
    "required",
    "anyOf",
    "additionalProperties",
    "items",
    "properties",
)
_KEYWORDS_OF_TYPE = {
    "string": {"minLength", "maxLength", "pattern"},
    "array": {"minItems", "maxItems", "items", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"},
    "object": {
        "minProperties",
        "maxProperties",
        "additionalProperties",
        "properties",
        "required",
        "x-kubernetes-map-type",
        "x-kubernetes-embedded-resource",
    },
    "integer": {"minimum", "maximum", "multipleOf"},
    "number": {"minimum", "maximum", "multipleOf"},
    "boolean": set(),
}
_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


class SchemaError(TypeError):
    """A model says something that a structural schema cannot; the message names the model and the field."""


class _StructuralJsonSchema(GenerateJsonSchema):
    """Pydantic's generator, where a Python `None` is the absence of a field and a default is written as on the wire."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, ResourceModel):
            return _without_empty(dft.to_wire())
        if isinstance(dft, tuple):
            return [self.encode_default(item) for item in dft]
        return super().encode_default(dft)

    def generate(self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        generated = super().generate(schema, mode)
        name = generated.get("title", "")
        definitions = {
            key: _structural(definition, where=key) for key, definition in generated.pop("$defs", {}).items()
        }
        root = _structural(generated, where=name)
        if definitions:
            root["$defs"] = definitions
        return root


def schema_with_references(model: type[BaseModel]) -> Schema:
    """Return the schema of a model in which each nested model is a `$ref` into `$defs`.

    Raises SchemaError for what a structural schema cannot say.
    """
    return model.model_json_schema(by_alias=True, schema_generator=_StructuralJsonSchema)


def structural_schema(model: type[BaseModel]) -> Schema:
    """Return the schema of a model as a CRD holds it: every nested model written out in place.

    Raises SchemaError for what a structural schema cannot say, a model that contains itself included.
    """
    schema = schema_with_references(model)
    definitions = schema.pop("$defs", {})
    return _inlined(schema, definitions, inside=())


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield every schema in an inlined schema with its path, as in `spec.limits[].name` and `spec.labels{}`."""
    yield path, schema
    for name, property_schema in schema.get("properties", {}).items():
        yield from walk(property_schema, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def _structural(node: Schema, *, where: str) -> Schema:
    """Return one schema of pydantic's in the words of a structural schema, and so all that it holds."""
    node = {key: value for key, value in node.items() if key != "title"}
    _say_absence(node)
    _say_constant(node)
    _say_bounds(node)
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
        node["anyOf"] = deepcopy(_INT_OR_STRING)
    if node.get("additionalProperties") is False or "x-kubernetes-preserve-unknown-fields" in node:
        node.pop("additionalProperties", None)
    if "description" in node:
        node["description"] = _paragraphs(node["description"])
    if "x-kubernetes-validations" in node:
        node["x-kubernetes-validations"] = [in_order(rule) for rule in node["x-kubernetes-validations"]]
    _refuse_unknown(node, where=where)
    if isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _structural(node["additionalProperties"], where=f"{where}{{}}")
    if "items" in node:
        node["items"] = _structural(node["items"], where=f"{where}[]")
    if "properties" in node:
        node["properties"] = {
            name: _structural(schema, where=f"{where}.{name}") for name, schema in node["properties"].items()
        }
    return {key: node[key] for key in _KEYWORDS if key in node}


def _say_absence(node: Schema) -> None:
    """An absent field needs no default: null, [] and {} say nothing that absence does not."""
    if "default" in node and node["default"] in (None, [], {}):
        del node["default"]


def _without_empty(wire: Schema) -> Schema:
    """Return an object without the lists and objects in it that hold nothing."""
    kept = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in wire.items()}
    return {key: value for key, value in kept.items() if value not in ([], {})}


def _say_constant(node: Schema) -> None:
    if "const" in node:
        node["enum"] = [node.pop("const")]


def _say_bounds(node: Schema) -> None:
    """Whole numbers get inclusive bounds and a width."""
    if node.get("type") != "integer":
        return
    if "exclusiveMinimum" in node:
        node["minimum"] = int(node.pop("exclusiveMinimum")) + 1
    if "exclusiveMaximum" in node:
        node["maximum"] = int(node.pop("exclusiveMaximum")) - 1
    narrow = "maximum" in node and _INT32[0] <= node.get("minimum", 0) and node["maximum"] <= _INT32[1]
    node.setdefault("format", "int32" if narrow else "int64")


def _refuse_unknown(node: Schema, *, where: str) -> None:
    unknown = sorted(set(node) - set(_KEYWORDS))
    if unknown:
        raise SchemaError(f"{where}: a structural schema cannot hold {', '.join(unknown)}: {node}")
    if node.get("additionalProperties") is True:
        raise SchemaError(f"{where}: say x-kubernetes-preserve-unknown-fields where any object is meant")
    if "anyOf" in node and "x-kubernetes-int-or-string" not in node:
        raise SchemaError(f"{where}: a union is only allowed as x-kubernetes-int-or-string")
    own = _KEYWORDS_OF_TYPE.get(node.get("type", ""), set())
    for type_, keywords in _KEYWORDS_OF_TYPE.items():
        strange = sorted((set(node) & keywords) - own)
        if "type" in node and type_ != node["type"] and strange:
            raise SchemaError(f"{where}: {', '.join(strange)} says nothing about type {node['type']}")
    if not {"type", "$ref", "anyOf"} & set(node) and "x-kubernetes-preserve-unknown-fields" not in node:
        raise SchemaError(f"{where}: has no type; Any is only allowed in a foreign object")


def _inlined(node: Schema, definitions: Mapping[str, Schema], *, inside: tuple[str, ...]) -> Schema:
    if "$ref" in node:
        name = node["$ref"].removeprefix(_REFERENCE)
        if name in inside:
            raise SchemaError(f"{name} contains itself ({' > '.join(inside)}); a structural schema cannot")
        return merged(_inlined(definitions[name], definitions, inside=(*inside, name)), node)
    whole = deepcopy(node)
    for key in ("items", "additionalProperties"):
        if key in node:
            whole[key] = _inlined(node[key], definitions, inside=inside)
    if "properties" in node:
        whole["properties"] = {
            name: _inlined(schema, definitions, inside=inside) for name, schema in node["properties"].items()
        }
    return whole


def merged(definition: Schema, use: Schema) -> Schema:
    """Return a model's schema as one field uses it: the field's words win, the rules of both hold."""
    both = {**definition, **deepcopy({key: value for key, value in use.items() if key != "$ref"})}
    validations = [*definition.get("x-kubernetes-validations", []), *use.get("x-kubernetes-validations", [])]
    if validations:
        both["x-kubernetes-validations"] = deepcopy(validations)
    return {key: both[key] for key in _KEYWORDS if key in both}


def in_order(validation: Mapping[str, Any]) -> Schema:
    """Return one CEL validation with its rule first."""
    return {key: validation[key] for key in sorted(validation, key=lambda key: (key != "rule", key))}


def _paragraphs(text: str) -> str:
    """Return a docstring with each paragraph on one line: whoever shows it breaks lines where they fit."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
