"""The scorecard: all checks, and one number for them."""

from collections.abc import Iterable
from dataclasses import dataclass

from shipkeeper.resources.appdeployment import ReadinessCheck

from .checks import CHECKS
from .facts import LiveFacts


@dataclass(frozen=True)
class Scorecard:
    """The result of all checks."""

    score: int
    checks: tuple[ReadinessCheck, ...]


def scorecard(facts: LiveFacts) -> Scorecard:
    """Return every check and the score."""
    checks = tuple(check(facts) for check in CHECKS)
    return Scorecard(score=score(checks), checks=checks)


def score(checks: Iterable[ReadinessCheck]) -> int:
    """Return per cent of the applicable checks that pass, rounded down. What is unknown has not been shown."""
    applicable = [check for check in checks if check.status != "NotApplicable"]
    if not applicable:
        return 0
    return 100 * sum(check.status == "Pass" for check in applicable) // len(applicable)
