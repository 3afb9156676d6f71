"""Changing one place of a JSON object, named as Kubernetes names it: `spec.limits[0].amount`."""

import re
from copy import deepcopy
from typing import Any

ABSENT: Any = object()
"""In place of a value: the field is to be removed."""

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def changed(document: dict[str, Any], *changes: tuple[str, Any]) -> dict[str, Any]:
    """Return a copy of the document with each place set to its value, or removed. Objects on the way are made."""
    copy = deepcopy(document)
    for path, value in changes:
        *way, last = _steps(path)
        place: Any = copy
        for step in way:
            place = place.setdefault(step, {}) if isinstance(step, str) else place[step]
        if value is ABSENT:
            del place[last]
        elif isinstance(last, int) and last == len(place):
            place.append(value)
        else:
            place[last] = value
    return copy


def at(document: Any, path: str) -> Any:
    """Return what stands at a place. Raises KeyError or IndexError where nothing does."""
    for step in _steps(path):
        document = document[step]
    return document


def _steps(path: str) -> list[str | int]:
    return [int(index) if index else name for name, index in _STEP.findall(path)]
