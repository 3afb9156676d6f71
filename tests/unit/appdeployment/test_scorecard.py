"""The scorecard: each check passes on evidence, fails with what to do, and says so where nothing can be seen."""

from dataclasses import replace
from typing import Any

import pytest

from shipkeeper.readiness import checks
from shipkeeper.readiness.facts import DeploymentFacts, LiveFacts, PodFacts, RequirementFacts
from shipkeeper.readiness.scorecard import score, scorecard
from shipkeeper_operator.children.appdeployment import build_deployment
from shipkeeper_operator.children.appdeployment_pod import build_pod_template
from shipkeeper_operator.reconcile.appdeployment_evidence import live_facts
from shipkeeper_operator.reconcile.appdeployment_facts import ObservedApp, ObservedClaim
from shipkeeper_operator.reconcile.appdeployment_gate import holders
from shipkeeper_operator.reconcile.pods import PodTrouble
from support.applications import application, as_served, pod, requirement

DEPLOYED = DeploymentFacts(
    is_complete=True,
    wanted=2,
    available=2,
    has_liveness_probe=True,
    has_readiness_probe=True,
    requests_memory=True,
    has_one_writer=False,
    has_scrape_annotations=True,
)
POD = PodFacts(is_ready=True, image="app:1")
MIGRATION = RequirementFacts(kind="MigrationJob", name="m", is_met=True, reason="Met")
POLICY = RequirementFacts(kind="RateLimitPolicy", name="p", is_met=True, reason="Met")
ALL_WELL = LiveFacts(
    database="Secret db",
    migrations=(MIGRATION,),
    policies=(POLICY,),
    deployment=DEPLOYED,
    pods=(POD, POD),
    has_disruption_budget=True,
    has_network_policy=True,
    tested_image="app:1",
)
NO_PODS: dict[str, Any] = {"pods": (), "deployment": None}


def test_all_well_is_a_hundred() -> None:
    card = scorecard(ALL_WELL)
    assert [check.status for check in card.checks] == ["Pass"] * 7
    assert card.score == 100
    assert len({check.name for check in card.checks}) == 7


def deployed(**changes: Any) -> dict[str, Any]:
    return {"deployment": replace(DEPLOYED, **changes)}


@pytest.mark.parametrize(
    ("check", "changes", "status", "reason"),
    [
        ("database", {"database": None, "migrations": ()}, "NotApplicable", "NotDeclared"),
        ("database", {"database": None}, "Pass", "MigrationsVerified"),
        ("database", {"migrations": ()}, "Pass", "Reached"),
        ("database", {"database_trouble": "Secret db does not exist"}, "Fail", "NotUsable"),
        ("database", {"migrations": (replace(MIGRATION, is_met=False, reason="NotVerified"),)}, "Fail",
         "MigrationNotVerified"),
        ("database", NO_PODS, "Unknown", "NoPods"),
        ("database", deployed(has_readiness_probe=False), "Unknown", "NoReadinessProbe"),
        ("database", {"pods": (replace(POD, is_ready=False),)}, "Fail", "NoPodReady"),
        ("rate_limits", {"policies": ()}, "NotApplicable", "NotDeclared"),
        ("rate_limits", {"policies": (replace(POLICY, is_met=False, reason="NotEnforced"),)}, "Fail", "NotEnforced"),
        ("health", NO_PODS, "Unknown", "NoPods"),
        ("health", deployed(has_liveness_probe=False), "Fail", "ProbeMissing"),
        ("health", deployed(has_readiness_probe=False), "Fail", "ProbeMissing"),
        ("health", {"pods": (POD, replace(POD, is_ready=False))}, "Fail", "NotReady"),
        ("security", NO_PODS, "Unknown", "NoPods"),
        ("security", {"has_network_policy": False}, "Fail", "Weak"),
        ("security", {"pods": (replace(POD, weaknesses=("runs as root",)),)}, "Fail", "Weak"),
        ("deployment", NO_PODS, "Unknown", "NotReleased"),
        ("deployment", deployed(is_complete=False), "Fail", "NotComplete"),
        ("deployment", deployed(wanted=0, available=0), "Fail", "ScaledToZero"),
        ("deployment", deployed(wanted=1, available=1), "Fail", "SingleReplica"),
        ("deployment", deployed(requests_memory=False), "Fail", "NoMemoryRequest"),
        ("deployment", {"has_disruption_budget": False}, "Fail", "NoDisruptionBudget"),
        ("deployment", deployed(wanted=1, available=1, has_one_writer=True), "Pass", "Complete"),
        ("monitoring", {"monitoring_declared": False}, "Fail", "Disabled"),
        ("monitoring", {"has_service_monitor": True, **NO_PODS}, "Pass", "ServiceMonitor"),
        ("monitoring", NO_PODS, "Unknown", "NoPods"),
        ("monitoring", deployed(has_scrape_annotations=False), "Fail", "NotScraped"),
        ("testing", {"tested_image": None}, "Unknown", "NotReported"),
        ("testing", NO_PODS, "Unknown", "NoPods"),
        ("testing", {"tested_image": "app:0"}, "Fail", "OtherImage"),
    ],
)  # fmt: skip
def test_each_check(check: str, changes: dict[str, Any], status: str, reason: str) -> None:
    result = getattr(checks, check)(replace(ALL_WELL, **changes))
    assert (result.status, result.reason) == (status, reason)
    assert result.message


def test_the_score_counts_what_was_shown() -> None:
    some = scorecard(replace(ALL_WELL, policies=(), tested_image=None))
    # Six apply; one of them is unknown.
    assert some.score == 100 * 5 // 6
    assert score(()) == 0


def test_evidence_comes_from_the_live_objects() -> None:
    spec: dict[str, Any] = {
        "replicas": 2,
        "database": {"urlFrom": {"name": "db", "key": "url"}},
        "requires": {"migrations": [{"name": "m"}], "rateLimitPolicies": [{"name": "p"}]},
    }
    resource = application(**spec)
    template = build_pod_template(resource, keys=None, scrape_annotations=True)
    observed = ObservedApp(
        deployment=as_served(build_deployment(resource, template=template, released="hash"), have=2),
        pods=(pod(), pod(name="app-2", ready=False)),
        migrations={"m": requirement("MigrationJob", "m", Ready="True", Verified="True")},
        children=frozenset({("PodDisruptionBudget", "app"), ("NetworkPolicy", "app")}),
    )
    facts = live_facts(resource, observed, unmet=holders(resource, observed), trouble=None)
    assert facts == LiveFacts(
        database="Secret db",
        migrations=(replace(MIGRATION),),
        policies=(replace(POLICY, is_met=False, reason="NotFound"),),
        deployment=DEPLOYED,
        pods=(
            PodFacts(is_ready=True, image="registry.test/app:1"),
            PodFacts(is_ready=False, image="registry.test/app:1"),
        ),
        has_disruption_budget=True,
        has_network_policy=True,
    )
    missing = PodTrouble("SecretNotFound", "Secret db does not exist: create it")
    assert live_facts(resource, observed, unmet=(), trouble=missing).database_trouble == missing.message
    other = PodTrouble("SecretNotFound", "Secret dbx does not exist: create it")
    assert live_facts(resource, observed, unmet=(), trouble=other).database_trouble is None


def test_evidence_of_a_sqlite_file() -> None:
    resource = application(database={"sqlite": {"size": "1Gi"}})
    lost = ObservedApp(claim=ObservedClaim(phase="Lost", is_ours=True))
    facts = live_facts(resource, lost, unmet=(), trouble=None)
    assert facts.database == "the SQLite file on volume claim app-data"
    assert facts.database_trouble is not None
    bound = ObservedApp(claim=ObservedClaim(phase="Bound", is_ours=True))
    assert live_facts(resource, bound, unmet=(), trouble=None).database_trouble is None


def test_a_pod_that_was_weakened_says_how() -> None:
    weak = pod()
    weak["spec"] = {"containers": [{"name": "app", "image": "x"}, *pod()["spec"]["containers"]]}
    observed = ObservedApp(pods=(weak,))
    (facts,) = live_facts(application(), observed, unmet=(), trouble=None).pods
    assert "a ServiceAccount token is mounted" in facts.weaknesses
    assert {
        "container app may run as root",
        "container app has no seccomp profile",
        "container app may gain privileges",
        "container app keeps capabilities",
        "container app can write its root file system",
    } <= set(facts.weaknesses)
