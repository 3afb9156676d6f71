"""Which columns of the source a consolidation makes anything from: only what they hold can reject a row."""

import re
from collections.abc import Iterator, Sequence

from shipkeeper.resources.migrationmapping import ColumnMapping
from shipkeeper.resources.migrationsteps import Consolidate


def used_columns(step: Consolidate, columns: Sequence[str]) -> frozenset[str]:
    """Return the columns that the step names, in its key, its values, its expressions or its filter."""
    named = set(step.key)
    texts = [step.filter] if step.filter is not None else []
    for mapping in step.columns:
        named.update(_named(mapping))
        texts += _expressions(mapping)
    # An expression may name more than it uses; that a word is a column of the source is reason enough.
    words = {word.lower() for text in texts for word in re.findall(r"[A-Za-z_][A-Za-z0-9_$]*", text)}
    return frozenset(column for column in columns if column in named or column.lower() in words)


def _named(mapping: ColumnMapping) -> Iterator[str]:
    if mapping.column is not None:
        yield mapping.column
    if mapping.timestamp is not None:
        yield mapping.timestamp.column
    if mapping.lookup is not None:
        yield from (way.source for way in mapping.lookup.match)
    if mapping.case is not None:
        yield from (branch.column for branch in mapping.case.branches)
    if mapping.json_object is not None:
        yield from (field.column for field in mapping.json_object.fields if field.column is not None)


def _expressions(mapping: ColumnMapping) -> list[str]:
    fields = mapping.json_object.fields if mapping.json_object is not None else ()
    return [text for text in (mapping.expression, *(field.expression for field in fields)) if text is not None]
