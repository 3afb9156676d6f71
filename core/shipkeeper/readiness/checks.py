"""The checks, one function each. Each says what it saw and, where that is not enough, what to do.

A check passes on evidence alone. What cannot be seen from within the cluster is Unknown, with why.
"""

from collections.abc import Callable
from typing import Final

from shipkeeper.resources.appdeployment import ReadinessCheck

from .facts import DeploymentFacts, LiveFacts, PodFacts, RequirementFacts

_ENOUGH_REPLICAS: Final = 2


def _passed(name: str, reason: str, message: str) -> ReadinessCheck:
    return ReadinessCheck(name=name, status="Pass", reason=reason, message=message)


def _failed(name: str, reason: str, message: str) -> ReadinessCheck:
    return ReadinessCheck(name=name, status="Fail", reason=reason, message=message)


def _unknown(name: str, reason: str, message: str) -> ReadinessCheck:
    return ReadinessCheck(name=name, status="Unknown", reason=reason, message=message)


def _not_applicable(name: str, reason: str, message: str) -> ReadinessCheck:
    return ReadinessCheck(name=name, status="NotApplicable", reason=reason, message=message)


def database(facts: LiveFacts) -> ReadinessCheck:
    """Check that running pods reach a database whose migrations are verified."""
    if facts.database is None and not facts.migrations:
        return _not_applicable("Database", "NotDeclared", "spec.database is not set")
    if facts.database_trouble is not None:
        return _failed("Database", "NotUsable", facts.database_trouble)
    if unmet := _unmet(facts.migrations):
        return _failed("Database", "MigrationNotVerified", unmet)
    verified = " and ".join(f"MigrationJob {each.name} is verified" for each in facts.migrations)
    if facts.database is None:
        return _passed("Database", "MigrationsVerified", verified)
    ready = _ready(facts.pods)
    if facts.deployment is None or not facts.pods:
        return _unknown("Database", "NoPods", "no pod runs, so nothing shows that the database answers")
    if not facts.deployment.has_readiness_probe:
        return _unknown("Database", "NoReadinessProbe", "without a readiness probe no pod says whether it is reached")
    if ready == 0:
        return _failed("Database", "NoPodReady", f"no pod with the URL from {facts.database} says that it is ready")
    reached = f"{ready} ready pods use the URL from {facts.database}"
    return _passed("Database", "Reached", f"{reached}; {verified}" if verified else reached)


def rate_limits(facts: LiveFacts) -> ReadinessCheck:
    """Check that the required policies are in force where the application asks."""
    if not facts.policies:
        return _not_applicable("RateLimits", "NotDeclared", "spec.requires.rateLimitPolicies is empty")
    if unmet := _unmet(facts.policies):
        return _failed("RateLimits", "NotEnforced", unmet)
    names = ", ".join(each.name for each in facts.policies)
    return _passed("RateLimits", "Enforced", f"read back from the store: {names}")


def health(facts: LiveFacts) -> ReadinessCheck:
    """Check that the kubelets' probes say that every pod is alive and ready."""
    deployment = facts.deployment
    if deployment is None or not facts.pods:
        return _unknown("Health", "NoPods", "no pod runs")
    absent = [
        name
        for name, is_there in (
            ("liveness", deployment.has_liveness_probe),
            ("readiness", deployment.has_readiness_probe),
        )
        if not is_there
    ]
    if absent:
        return _failed("Health", "ProbeMissing", f"the pods have no {' and no '.join(absent)} probe: set spec.probes")
    ready = _ready(facts.pods)
    if ready < len(facts.pods):
        return _failed("Health", "NotReady", f"{ready} of {len(facts.pods)} pods are ready")
    return _passed("Health", "ProbesPass", f"{ready} of {ready} pods pass their probes")


def security(facts: LiveFacts) -> ReadinessCheck:
    """Check that the running pods hold to restricted Pod Security, and that a NetworkPolicy selects them."""
    if not facts.pods:
        return _unknown("Security", "NoPods", "no pod runs")
    weaknesses = sorted({weakness for pod in facts.pods for weakness in pod.weaknesses})
    if not facts.has_network_policy:
        weaknesses.append("no NetworkPolicy selects the pods")
    if weaknesses:
        return _failed("Security", "Weak", f"in the running pods: {'; '.join(weaknesses)}")
    return _passed(
        "Security",
        "Restricted",
        f"{len(facts.pods)} running pods: non-root, read-only root, no capabilities, seccomp, no token; NetworkPolicy",
    )


def deployment(facts: LiveFacts) -> ReadinessCheck:
    """Check that what was declared is what runs, and that it survives the loss of a node."""
    live = facts.deployment
    if live is None:
        return _unknown("Deployment", "NotReleased", "no Deployment exists yet")
    if not live.is_complete:
        return _failed(
            "Deployment", "NotComplete", f"{live.available} of {live.wanted} pods of the newest template serve"
        )
    if weakness := _deployment_weakness(facts, live):
        return _failed("Deployment", *weakness)
    spare = "one replica, as a SQLite file allows" if live.has_one_writer else "a PodDisruptionBudget guards them"
    return _passed("Deployment", "Complete", f"{live.available} of {live.wanted} pods serve; {spare}")


def _deployment_weakness(facts: LiveFacts, live: DeploymentFacts) -> tuple[str, str] | None:
    if live.wanted == 0:
        return "ScaledToZero", "no pod is wanted: set spec.replicas"
    if not live.requests_memory:
        return "NoMemoryRequest", "the pods request no memory: set spec.resources.requests.memory"
    if live.has_one_writer:
        return None
    if live.wanted < _ENOUGH_REPLICAS:
        return "SingleReplica", "one pod: draining its node interrupts the application; set spec.replicas to 2 or more"
    if not facts.has_disruption_budget:
        return "NoDisruptionBudget", "draining nodes may take all pods at once: set spec.disruptionBudget.mode to Auto"
    return None


def monitoring(facts: LiveFacts) -> ReadinessCheck:
    """Check that Prometheus is told where the metrics are."""
    if not facts.monitoring_declared:
        return _failed("Monitoring", "Disabled", "spec.monitoring.mode is Disabled: set it to Auto")
    if facts.has_service_monitor:
        return _passed("Monitoring", "ServiceMonitor", "a ServiceMonitor tells Prometheus where the metrics are")
    if facts.deployment is None or not facts.pods:
        return _unknown("Monitoring", "NoPods", "no pod runs")
    if facts.deployment.has_scrape_annotations:
        return _passed("Monitoring", "ScrapeAnnotations", "the pods carry prometheus.io annotations")
    return _failed("Monitoring", "NotScraped", "the pods have neither a ServiceMonitor nor prometheus.io annotations")


def testing(facts: LiveFacts) -> ReadinessCheck:
    """Check that a delivery pipeline said that the image that runs passed its tests."""
    how = "annotate the AppDeployment with shipkeeper.dev/tested-image=<image> after the tests of that image passed"
    if facts.tested_image is None:
        return _unknown("Testing", "NotReported", f"tests run outside the cluster; {how}")
    images = sorted({pod.image for pod in facts.pods})
    if not images:
        return _unknown("Testing", "NoPods", "no pod runs")
    if images != [facts.tested_image]:
        text = f"{', '.join(images)} runs, but the tests that passed were those of {facts.tested_image}; {how}"
        return _failed("Testing", "OtherImage", text)
    return _passed("Testing", "Reported", f"the delivery pipeline says that the tests of {facts.tested_image} passed")


CHECKS: Final[tuple[Callable[[LiveFacts], ReadinessCheck], ...]] = (
    database,
    rate_limits,
    health,
    security,
    deployment,
    monitoring,
    testing,
)
"""Every check, in the order in which they are shown."""


def _ready(pods: tuple[PodFacts, ...]) -> int:
    return sum(pod.is_ready for pod in pods)


def _unmet(requirements: tuple[RequirementFacts, ...]) -> str:
    return "; ".join(f"{each.kind} {each.name}: {each.reason}" for each in requirements if not each.is_met)
