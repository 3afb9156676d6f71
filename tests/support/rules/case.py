"""What a case of a rule is: one change that the API server refuses, and a neighbour that it accepts."""

from dataclasses import dataclass
from typing import Any

Change = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class RuleCase:
    """A rule of a CRD, by its place and message, shown from both sides."""

    rule: str
    """Place of the schema that holds the rule, as `shipkeeper.resources.schema.walk` writes it; empty: the object."""
    message: str
    """The rule's message, or a part of it that no other rule of the place has."""
    field: str
    """The field that the API server names."""
    refused: tuple[Change, ...]
    """Changes of the base that break this rule."""
    accepted: tuple[Change, ...] = ()
    """Changes of the base that come close and do not break it."""
    base: str = "every-field"
    """Name of the complete object that is changed."""
    stored: tuple[Change, ...] | None = None
    """For a transition rule: changes of the base that make the object which is replaced."""
