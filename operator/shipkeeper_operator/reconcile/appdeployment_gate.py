"""What holds a rollout: the requirements that are not met, each by name and reason.

A requirement counts only at its current generation: a migration that was verified before its spec was changed holds.
Nothing but stable words goes into a holder, so that a migration's progress does not rewrite the application's status.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from shipkeeper.resources.appdeployment import AppDeployment, Holder

from .appdeployment_facts import ObservedApp

RequirementKind = Literal["MigrationJob", "RateLimitPolicy"]

MIGRATION_CONDITIONS: Final = ("Verified", "Ready")
POLICY_CONDITIONS: Final = ("Enforced",)


def required(resource: AppDeployment) -> Iterable[tuple[RequirementKind, str]]:
    """Yield kind and name of everything that the application requires."""
    for migration in resource.spec.requires.migrations:
        yield "MigrationJob", migration.name
    for policy in resource.spec.requires.rate_limit_policies:
        yield "RateLimitPolicy", policy.name


def holders(resource: AppDeployment, observed: ObservedApp) -> tuple[Holder, ...]:
    """Return the requirements that are not met now; empty where a new pod template may roll out."""
    found = []
    for kind, name in required(resource):
        if kind == "MigrationJob":
            holder = _holder(kind, name, observed.migrations.get(name), conditions=MIGRATION_CONDITIONS)
        else:
            holder = _holder(kind, name, observed.policies.get(name), conditions=POLICY_CONDITIONS)
        if holder is not None:
            found.append(holder)
    return tuple(found)


def hold_reason(held_by: Sequence[Holder]) -> str:
    """Return the condition's reason: a migration is named before a policy, because it takes longer."""
    return "HeldByMigration" if any(each.kind == "MigrationJob" for each in held_by) else "HeldByRateLimitPolicy"


def hold_message(held_by: Sequence[Holder]) -> str:
    """Return what a person should know about a held rollout."""
    return "The rollout waits: " + "; ".join(holder.message for holder in held_by)


def _holder(
    kind: RequirementKind, name: str, found: Mapping[str, Any] | None, *, conditions: Sequence[str]
) -> Holder | None:
    def holder(reason: str, why: str) -> Holder:
        return Holder(kind=kind, name=name, reason=reason, message=f"{kind} {name} {why}")

    if found is None:
        return holder("NotFound", "does not exist in this namespace: create it, or remove it from spec.requires")
    metadata, status = found["metadata"], found.get("status", {})
    if "deletionTimestamp" in metadata:
        return holder("Terminating", "is being deleted")
    if status.get("observedGeneration") != metadata.get("generation"):
        return holder("NotObservedYet", "has a newer spec than its status")
    said = {condition["type"]: condition for condition in status.get("conditions", ())}
    for type_ in conditions:
        condition = said.get(type_)
        if condition is None or condition.get("status") != "True":
            reason = said.get("Ready", condition or {}).get("reason", "Unknown")
            return holder(f"Not{type_}", f"is not {type_} ({reason}): kubectl describe {kind.lower()} {name}")
    return None
