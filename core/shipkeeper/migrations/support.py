"""What the engine cannot do of what a spec may declare. It is refused by name, never ignored."""

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationsteps import Step


def unsupported(spec: MigrationJobSpec) -> tuple[tuple[str, str], ...]:
    """Return each declared field that the engine cannot carry out, and what to do instead."""
    found = []
    if spec.source is not None:
        found.append(("spec.source", "bring the table into the target database first, and leave source out"))
    if spec.rollback:
        found.append(("spec.rollback", "delete by the columns of identity, and leave rollback false"))
    if spec.parallelism > 1:
        found.append(("spec.parallelism", "set it to 1"))
    if spec.verification.repair:
        found.append(("spec.verification.repair", "leave it false; status names the rows that differ"))
    if spec.rejects.retry:
        found.append(("spec.rejects.retry", "leave it 0, and raise spec.revision to try all rows again"))
    for position, step in enumerate(spec.steps):
        found += [(f"spec.steps[{position}].{field}", advice) for field, advice in _of_step(step)]
    return tuple(found)


def _of_step(step: Step) -> list[tuple[str, str]]:
    if step.consolidate is not None and step.consolidate.follow:
        return [("consolidate.follow", "leave it false; raise spec.revision to take the rows that came later")]
    if step.retire is not None and step.retire.action == "Drop":
        return [("retire.action", "use Rename")]
    return []
