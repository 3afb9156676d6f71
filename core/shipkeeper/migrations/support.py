"""What the engine cannot do of what a spec may declare. It is refused by name, never ignored."""

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationsteps import Step


def unsupported(spec: MigrationJobSpec) -> tuple[tuple[str, str], ...]:
    """Return each declared field that the engine cannot carry out, and what to do instead."""
    found = []
    if spec.source is not None:
        found.append(("spec.source", "bring the table into the target database first, and leave source out"))
    if spec.parallelism > 1:
        found.append(("spec.parallelism", "set it to 1"))
    for position, step in enumerate(spec.steps):
        found += [(f"spec.steps[{position}].{field}", advice) for field, advice in _of_step(step)]
    return tuple(found)


def _of_step(step: Step) -> list[tuple[str, str]]:
    if step.consolidate is not None and step.consolidate.follow:
        return [("consolidate.follow", "leave it false; raise spec.revision to take the rows that came later")]
    return []
