"""From what was observed of an application to the facts of its readiness scorecard."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shipkeeper.readiness.facts import DeploymentFacts, LiveFacts, PodFacts, RequirementFacts
from shipkeeper.resources.appdeployment import AppDeployment, Holder
from shipkeeper_operator.children.appdeployment_monitoring import SERVICE_MONITOR
from shipkeeper_operator.children.appdeployment_names import (
    CONTAINER_NAME,
    TESTED_IMAGE_ANNOTATION,
    volume_claim_name,
)

from .appdeployment_facts import ObservedApp
from .appdeployment_gate import required
from .appdeployment_rollout import counts, is_complete
from .pods import PodTrouble

Object = Mapping[str, Any]


def live_facts(
    resource: AppDeployment, observed: ObservedApp, *, unmet: Sequence[Holder], trouble: PodTrouble | None
) -> LiveFacts:
    """Return the facts. `unmet` are the requirements that are not met now, whether or not they hold anything."""
    requirements = tuple(_requirements(resource, unmet))
    owned, name = observed.children, resource.metadata.name
    return LiveFacts(
        database=_database(resource),
        database_trouble=_database_trouble(resource, observed, trouble),
        migrations=tuple(each for each in requirements if each.kind == "MigrationJob"),
        policies=tuple(each for each in requirements if each.kind == "RateLimitPolicy"),
        deployment=_deployment(observed.deployment),
        pods=tuple(_pod(pod) for pod in observed.pods),
        has_disruption_budget=("PodDisruptionBudget", name) in owned,
        has_network_policy=("NetworkPolicy", name) in owned,
        has_service_monitor=(SERVICE_MONITOR, name) in owned,
        monitoring_declared=resource.spec.monitoring.mode != "Disabled",
        tested_image=resource.metadata.annotations.get(TESTED_IMAGE_ANNOTATION),
    )


def _requirements(resource: AppDeployment, unmet: Sequence[Holder]) -> Iterator[RequirementFacts]:
    reasons = {(holder.kind, holder.name): holder.reason for holder in unmet}
    for kind, name in required(resource):
        reason = reasons.get((kind, name))
        yield RequirementFacts(kind=kind, name=name, is_met=reason is None, reason=reason or "Met")


def _database(resource: AppDeployment) -> str | None:
    database = resource.spec.database
    if database is None:
        return None
    if database.url_from is not None:
        return f"Secret {database.url_from.name}"
    return f"the SQLite file on volume claim {volume_claim_name(resource)}"


def _database_trouble(resource: AppDeployment, observed: ObservedApp, trouble: PodTrouble | None) -> str | None:
    database = resource.spec.database
    if database is None:
        return None
    if database.sqlite is not None and observed.claim is not None and observed.claim.phase == "Lost":
        return f"volume claim {volume_claim_name(resource)} has lost its volume"
    secret = database.url_from.name if database.url_from is not None else None
    if trouble is not None and secret is not None and f"Secret {secret} " in trouble.message:
        return trouble.message
    return None


def _deployment(live: Object | None) -> DeploymentFacts | None:
    if live is None:
        return None
    template = live["spec"]["template"]
    container = _application(template["spec"].get("containers", ()))
    return DeploymentFacts(
        is_complete=is_complete(live),
        wanted=live["spec"].get("replicas", 1),
        available=counts(live).available,
        has_liveness_probe="livenessProbe" in container,
        has_readiness_probe="readinessProbe" in container,
        requests_memory="memory" in container.get("resources", {}).get("requests", {}),
        has_one_writer=live["spec"].get("strategy", {}).get("type") == "Recreate",
        has_scrape_annotations=template.get("metadata", {}).get("annotations", {}).get("prometheus.io/scrape")
        == "true",
    )


def _application(containers: Sequence[Object]) -> Object:
    """Return the application's container, which an overlay may have joined by others."""
    return next((each for each in containers if each.get("name") == CONTAINER_NAME), {})


def _pod(pod: Object) -> PodFacts:
    said = {each["type"]: each["status"] for each in pod.get("status", {}).get("conditions", ())}
    return PodFacts(
        is_ready=said.get("Ready") == "True",
        image=_application(pod.get("spec", {}).get("containers", ())).get("image", ""),
        weaknesses=tuple(_weaknesses(pod)),
    )


def _weaknesses(pod: Object) -> Iterator[str]:
    """Yield what a pod lacks of the restricted Pod Security Standard and of a read-only root, each in a few words."""
    spec = pod.get("spec", {})
    of_pod = spec.get("securityContext", {})
    if spec.get("automountServiceAccountToken") is not False:
        yield "a ServiceAccount token is mounted"
    for container in spec.get("containers", ()):
        own, name = container.get("securityContext", {}), container.get("name")
        context = {**of_pod, **own}
        if context.get("runAsNonRoot") is not True:
            yield f"container {name} may run as root"
        if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"container {name} has no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"container {name} may gain privileges"
        if "ALL" not in own.get("capabilities", {}).get("drop", ()):
            yield f"container {name} keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"container {name} can write its root file system"
