"""What the engine cannot do of what a spec may declare. It is refused by name, never ignored."""

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationsteps import Step


def unsupported(spec: MigrationJobSpec) -> tuple[tuple[str, str], ...]:
    """Return each declared field that the engine cannot carry out, and what to do instead."""
    found = []
    if spec.source is not None:
        found += _of_source(spec)
    if spec.parallelism > 1:
        found.append(("spec.parallelism", "set it to 1"))
    for position, step in enumerate(spec.steps):
        found += [(f"spec.steps[{position}].{field}", advice) for field, advice in _of_step(step)]
    return tuple(found)


def _of_source(spec: MigrationJobSpec) -> list[tuple[str, str]]:
    assert spec.source is not None  # noqa: S101 # The caller looked.
    found = []
    if spec.database.sqlite is not None:
        found.append(("spec.source", "let spec.database be PostgreSQL, or bring the table into the file first"))
    # What reads the source's rows otherwise than batch after batch would find the temporary table empty.
    together = (
        ("spec.rollback", spec.rollback),
        ("spec.parallelism", spec.parallelism > 1),
        ("spec.verification.repair", spec.verification.repair),
        ("spec.rejects.retry", spec.rejects.retry),
    )
    found += [(field, "leave it out together with spec.source") for field, is_set in together if is_set]
    for position, step in enumerate(spec.steps):
        if step.retire is not None and step.retire.action == "Drop" and spec.source.sqlite is None:
            found.append((f"spec.steps[{position}].retire.action", "use Rename together with spec.source"))
    if spec.source.sqlite is not None:
        retires = [position for position, step in enumerate(spec.steps) if step.retire is not None]
        advice = "remove the step: the SQLite file of spec.source is only read"
        found += [(f"spec.steps[{position}].retire", advice) for position in retires]
    return found


def _of_step(step: Step) -> list[tuple[str, str]]:
    if step.consolidate is not None and step.consolidate.follow:
        return [("consolidate.follow", "leave it false; raise spec.revision to take the rows that came later")]
    return []
