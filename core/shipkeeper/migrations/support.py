"""What the engine cannot do of what a spec may declare. It is refused by name, never ignored."""

from shipkeeper.resources.migrationjob import MigrationJobSpec


def unsupported(spec: MigrationJobSpec) -> tuple[tuple[str, str], ...]:
    """Return each declared field that the engine cannot carry out, and what to do instead."""
    return ()
