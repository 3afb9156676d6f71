"""The gate: what holds a rollout, what does not, and what the held pods do."""

from typing import Any

import pytest

from shipkeeper_operator.children.appdeployment import build_deployment
from shipkeeper_operator.children.appdeployment_pod import build_pod_template, template_hash
from shipkeeper_operator.reconcile.appdeployment import reconcile, references
from shipkeeper_operator.reconcile.appdeployment_facts import ObservedApp
from shipkeeper_operator.reconcile.appdeployment_gate import hold_reason, holders
from support.applications import NOW, application, as_served, requirement

REQUIRES = {"migrations": [{"name": "m"}], "rateLimitPolicies": [{"name": "p"}]}
MIGRATED = {"m": requirement("MigrationJob", "m", Ready="True", Verified="True")}
ENFORCED = {"p": requirement("RateLimitPolicy", "p", Ready="False", Enforced="True")}


def test_everything_met_holds_nothing() -> None:
    resource = application(requires=REQUIRES)
    assert holders(resource, ObservedApp(migrations=MIGRATED, policies=ENFORCED)) == ()
    assert set(references(resource)) == {("MigrationJob", "m"), ("RateLimitPolicy", "p")}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "NotFound"),
        (requirement("MigrationJob", "m", Ready="False", Verified="True"), "NotReady"),
        (requirement("MigrationJob", "m", Ready="True", Verified="False"), "NotVerified"),
        (requirement("MigrationJob", "m", Ready="True"), "NotVerified"),
        (requirement("MigrationJob", "m"), "NotVerified"),
        (requirement("MigrationJob", "m", generation=2, Ready="True", Verified="True"), "NotObservedYet"),
        ({"metadata": {"name": "m", "generation": 1}}, "NotObservedYet"),
        ({"metadata": {"name": "m", "generation": 1, "deletionTimestamp": "2026-01-01T00:00:00Z"}}, "Terminating"),
    ],
)
def test_a_migration_holds_until_it_is_verified_at_its_generation(found: Any, reason: str) -> None:
    resource = application(requires=REQUIRES)
    migrations = {} if found is None else {"m": found}
    (holder,) = holders(resource, ObservedApp(migrations=migrations, policies=ENFORCED))
    assert (holder.kind, holder.name, holder.reason) == ("MigrationJob", "m", reason)
    assert "m" in holder.message
    assert hold_reason((holder,)) == "HeldByMigration"


def test_a_policy_holds_until_it_is_enforced() -> None:
    resource = application(requires=REQUIRES)
    policy = requirement("RateLimitPolicy", "p", Ready="True", Enforced="False")
    (holder,) = holders(resource, ObservedApp(migrations=MIGRATED, policies={"p": policy}))
    assert (holder.kind, holder.reason) == ("RateLimitPolicy", "NotEnforced")
    assert hold_reason((holder,)) == "HeldByRateLimitPolicy"


def deployments(resource: Any, observed: ObservedApp) -> list[dict[str, Any]]:
    outcome = reconcile(resource, observed, now=NOW)
    return [dict(child) for child in outcome.children if child["kind"] == "Deployment"]


def released(**spec: Any) -> dict[str, Any]:
    """Return the live Deployment of an application that was released."""
    resource = application(**spec)
    template = build_pod_template(resource, keys=None, scrape_annotations=True)
    manifest = build_deployment(resource, template=template, released=template_hash(template))
    return as_served(manifest, have=resource.spec.replicas)


def test_nothing_is_started_before_the_first_release() -> None:
    resource = application(requires=REQUIRES)
    outcome = reconcile(resource, ObservedApp(), now=NOW)
    kinds = {child["kind"] for child in outcome.children}
    assert "Deployment" not in kinds
    assert "Service" in kinds
    assert outcome.retained == ()
    assert [each.reason for each in outcome.status.conditions if each.type in ("Ready", "Reconciling", "Released")] == [
        "HeldByMigration"
    ] * 3
    assert {holder.name for holder in outcome.status.held_by} == {"m", "p"}
    observed = ObservedApp(migrations=MIGRATED, policies=ENFORCED)
    (deployment,) = deployments(resource, observed)
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.test/app:1"


def test_what_was_released_is_not_held_again() -> None:
    resource = application(requires=REQUIRES)
    outcome = reconcile(resource, ObservedApp(deployment=released(requires=REQUIRES)), now=NOW)
    assert outcome.status.held_by == ()
    assert [each.status for each in outcome.status.conditions if each.type == "Ready"] == ["True"]
    database = next(check for check in outcome.status.checks if check.name == "Database")
    assert database.reason == "MigrationNotVerified"


def test_a_new_template_waits_and_the_old_deployment_stays_as_it_is() -> None:
    resource = application(requires=REQUIRES, image="registry.test/app:2")
    outcome = reconcile(resource, ObservedApp(deployment=released(requires=REQUIRES)), now=NOW)
    assert outcome.retained == (("Deployment", "app"),)
    assert not [child for child in outcome.children if child["kind"] == "Deployment"]
    assert outcome.status.image == "registry.test/app:1"
    said = {each.type: (each.status, each.reason) for each in outcome.status.conditions}
    assert said["Ready"] == ("False", "HeldByMigration")
    assert said["Available"] == ("True", "PodsServe")


def test_a_held_application_is_still_scaled() -> None:
    live = released(requires=REQUIRES)
    resource = application(requires=REQUIRES, image="registry.test/app:2", replicas=4)
    (deployment,) = deployments(resource, ObservedApp(deployment=live))
    assert deployment["spec"]["replicas"] == 4
    assert deployment["spec"]["template"] == live["spec"]["template"]
    # Still not released: the next pass must hold it again.
    again = as_served(deployment, have=4)
    outcome = reconcile(resource, ObservedApp(deployment=again), now=NOW)
    assert outcome.retained == (("Deployment", "app"),)
    assert [holder.name for holder in outcome.status.held_by] == ["m", "p"]


def test_an_overlay_that_cannot_be_merged_stops_before_anything_changes() -> None:
    resource = application(podTemplate={"spec": {"volumes": [{"emptyDir": {}}]}})
    outcome = reconcile(resource, ObservedApp(deployment=released()), now=NOW)
    assert outcome.retained == (("Deployment", "app"),)
    stalled = next(each for each in outcome.status.conditions if each.type == "Stalled")
    assert stalled.reason == "InvalidPodTemplate"
    assert "spec.podTemplate.spec.volumes[0]" in stalled.message
    first = reconcile(resource, ObservedApp(), now=NOW)
    assert first.retained == ()
