"""The schema generator on small models: each thing that pydantic says otherwise than the API server."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field, JsonValue

from shipkeeper.resources.base import Duration, Instant, ResourceModel, cel, list_map, with_cel
from shipkeeper.resources.schema import SchemaError, schema_with_references, structural_schema, walk

FOREIGN: dict[str, JsonValue] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
ORDER = cel("self.low <= self.high", "low must not be above high")
FIXED = cel("self == oldSelf", "range cannot be changed")


class Range(ResourceModel):
    """A range
    of numbers.

    Both ends included.
    """

    model_config = ConfigDict(json_schema_extra=with_cel(ORDER))

    low: int = Field(default=1, gt=0)
    """Lowest number."""
    high: int | None = Field(default=None, ge=1, lt=65536)
    """Highest
    number."""


class Everything(ResourceModel):
    """One field of every shape that models may have."""

    only: Literal["One"] = "One"
    choice: Literal["One", "Two"] | None = None
    range: Range = Range(low=3)
    fixed_range: Range | None = Field(default=None, json_schema_extra=with_cel(FIXED))
    """Another range."""
    ranges: tuple[Range, ...] = Field(default=(), max_length=4, json_schema_extra=list_map("low"))
    words: tuple[Annotated[str, Field(max_length=3)], ...] | None = Field(default=None, max_length=4)
    labels: dict[str, Annotated[str, Field(max_length=63)]] = Field(default_factory=dict, max_length=8)
    count_or_share: int | str | None = Field(default=None, json_schema_extra={"x-kubernetes-int-or-string": True})
    foreign: dict[str, Any] | None = Field(default=None, json_schema_extra=FOREIGN)
    at: Instant | None = None
    pause: Duration = "5s"
    enabled: bool = False
    large: int = Field(default=0, ge=0)


PROPERTIES = structural_schema(Everything)["properties"]


def test_a_nullable_field_is_an_optional_one() -> None:
    assert PROPERTIES["choice"] == {"type": "string", "enum": ["One", "Two"]}
    assert "required" not in structural_schema(Everything)


def test_a_field_without_a_default_is_required() -> None:
    class Needs(ResourceModel):
        first_name: str
        nick_name: str | None = None

    assert structural_schema(Needs)["required"] == ["firstName"]


def test_one_literal_is_an_enum() -> None:
    assert PROPERTIES["only"] == {"type": "string", "enum": ["One"], "default": "One"}


def test_nested_models_are_written_out() -> None:
    schema = structural_schema(Everything)
    assert "$defs" not in schema
    assert not [path for path, node in walk(schema) if "$ref" in node]
    assert PROPERTIES["ranges"]["items"]["properties"]["low"]["description"] == "Lowest number."


def test_the_words_of_a_field_win_over_those_of_its_type() -> None:
    assert PROPERTIES["fixedRange"]["description"] == "Another range."
    assert PROPERTIES["ranges"]["items"]["description"] == "A range of numbers.\n\nBoth ends included."


def test_the_rules_of_a_field_and_of_its_type_both_hold() -> None:
    assert PROPERTIES["fixedRange"]["x-kubernetes-validations"] == [ORDER, FIXED]
    assert PROPERTIES["range"]["x-kubernetes-validations"] == [ORDER]


def test_a_rule_stands_before_its_message() -> None:
    assert list(PROPERTIES["range"]["x-kubernetes-validations"][0]) == ["rule", "message"]


def test_a_default_is_written_as_on_the_wire() -> None:
    assert PROPERTIES["range"]["default"] == {"low": 3}
    assert PROPERTIES["enabled"]["default"] is False
    assert PROPERTIES["large"]["default"] == 0


@pytest.mark.parametrize("field", ["choice", "ranges", "labels", "foreign"])
def test_a_default_that_says_nothing_is_left_out(field: str) -> None:
    assert "default" not in PROPERTIES[field]


def test_exclusive_bounds_become_inclusive_ones_with_a_width() -> None:
    low, high = PROPERTIES["range"]["properties"]["low"], PROPERTIES["range"]["properties"]["high"]
    assert (low["minimum"], low["format"]) == (1, "int64")
    assert (high["minimum"], high["maximum"], high["format"]) == (1, 65535, "int32")


def test_the_description_of_a_field_is_one_line() -> None:
    assert PROPERTIES["range"]["properties"]["high"]["description"] == "Highest number."


def test_a_map_holds_bounded_strings() -> None:
    assert PROPERTIES["labels"] == {
        "type": "object",
        "maxProperties": 8,
        "additionalProperties": {"type": "string", "maxLength": 63},
    }


def test_a_number_or_a_text() -> None:
    assert PROPERTIES["countOrShare"] == {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
    }


def test_a_foreign_object_keeps_its_fields() -> None:
    assert PROPERTIES["foreign"] == FOREIGN


def test_times_and_spans() -> None:
    assert PROPERTIES["at"] == {"type": "string", "format": "date-time"}
    assert (PROPERTIES["pause"]["default"], PROPERTIES["pause"]["maxLength"]) == ("5s", 32)


def test_a_list_map_names_its_keys_as_on_the_wire() -> None:
    assert PROPERTIES["ranges"]["x-kubernetes-list-map-keys"] == ["low"]


def test_titles_and_closedness_are_dropped() -> None:
    assert not [path for path, node in walk(structural_schema(Everything)) if "title" in node]
    assert not [path for path, node in walk(structural_schema(Everything)) if node.get("additionalProperties") is False]


def test_two_uses_of_a_type_share_nothing() -> None:
    schema = structural_schema(Everything)
    schema["properties"]["range"]["properties"]["low"]["minimum"] = 99
    assert schema["properties"]["fixedRange"]["properties"]["low"]["minimum"] == 1
    assert structural_schema(Everything)["properties"]["range"]["properties"]["low"]["minimum"] == 1


def test_with_references_each_type_stands_once() -> None:
    schema = schema_with_references(Everything)
    assert schema["properties"]["range"]["$ref"] == "#/$defs/Range"
    assert set(schema["$defs"]) == {"Range"}


def test_a_field_may_be_named_like_a_keyword() -> None:
    class Keywords(ResourceModel):
        default: int = Field(default=1, ge=0, le=1)
        enum: Range | None = None
        title: str = Field(default="a", max_length=1)

    properties = structural_schema(Keywords)["properties"]
    assert set(properties) == {"default", "enum", "title"}
    assert properties["enum"]["properties"]["low"]["minimum"] == 1


class ItselfInside(ResourceModel):
    inner: "ItselfInside | None" = None


def test_what_a_structural_schema_cannot_say_is_refused_by_name() -> None:
    class Union(ResourceModel):
        either: int | str

    class Anything(ResourceModel):
        anything: Any

    class Open(ResourceModel):
        inner: dict[str, Any]

    class Pattern(ResourceModel):
        keys: dict[Annotated[str, Field(pattern="^a")], str]

    class Misplaced(ResourceModel):
        words: tuple[str, ...] = Field(default=(), json_schema_extra={"maxLength": 3})

    for model, message in (
        (Union, "Union.either: a union is only allowed as x-kubernetes-int-or-string"),
        (Anything, "Anything.anything: has no type"),
        (Open, "Open.inner: say x-kubernetes-preserve-unknown-fields"),
        (Pattern, "Pattern.keys: a structural schema cannot hold"),
        (Misplaced, "Misplaced.words: maxLength says nothing about type array"),
        (ItselfInside, "ItselfInside contains itself"),
    ):
        with pytest.raises(SchemaError) as refused:
            structural_schema(model)
        assert message in str(refused.value)
