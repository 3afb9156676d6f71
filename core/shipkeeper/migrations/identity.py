"""Whether a mapping writes the identity that its step names: what verification may then take for granted."""

from typing import Final

from shipkeeper.resources.migrationmapping import ColumnMapping
from shipkeeper.resources.migrationsteps import Consolidate, IdentityPart

from .mapping import CompiledMapping

# Families whose values have one text, whichever column they stand in.
_EXACT_AS_TEXT: Final = ("integer", "text")


def writes_identity(step: Consolidate, mapping: CompiledMapping) -> bool:
    """Whether the spec itself shows that each row the mapping gives carries the step's constants and its source's key.

    False also where only the data could tell, as with an expression.
    """
    columns = {column.name: column for column in step.columns}
    return all(_is_written(part, columns.get(part.column), mapping) for part in step.identity)


def _is_written(part: IdentityPart, column: ColumnMapping | None, mapping: CompiledMapping) -> bool:
    if column is None:
        return False
    constant, source = column.constant, column.column
    if part.field is not None:
        fields = column.json_object.fields if column.json_object is not None else ()
        found = [each for each in fields if each.name == part.field]
        if len(found) != 1 or found[0].type not in ("Auto", "Text"):
            return False
        constant, source = found[0].constant, found[0].column
    elif mapping.target.column(part.column, used_by="identity").family not in _EXACT_AS_TEXT:
        return False
    if part.constant is not None:
        return constant == part.constant
    return source == part.source and mapping.source.columns[str(source)].family in _EXACT_AS_TEXT
