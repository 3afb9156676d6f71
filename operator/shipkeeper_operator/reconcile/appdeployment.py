"""What follows for an application: its objects, whether its newest pod template may run, and its status. Pure.

The gate stands before a pod template, not before pods: what was released once is never held again, so a migration that
is changed later, a Redis that is away, or a restart of the operator cannot stop pods that serve. While a new template
is held, the Deployment keeps the old one; only the number of replicas follows the spec.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from shipkeeper.readiness.scorecard import scorecard
from shipkeeper.resources.appdeployment import AppDeployment, AppDeploymentStatus, Holder
from shipkeeper.resources.conditions import Claim, dated, ready, reconciling, retrying, stalled
from shipkeeper_operator.children.appdeployment import (
    build_companions,
    build_deployment,
    build_volume_claim,
)
from shipkeeper_operator.children.appdeployment_monitoring import build_monitoring, needs_scrape_annotations
from shipkeeper_operator.children.appdeployment_names import (
    CONTAINER_NAME,
    RELEASED_TEMPLATE_ANNOTATION,
    selector_text,
    service_url,
    volume_claim_name,
)
from shipkeeper_operator.children.appdeployment_overlay import OverlayError
from shipkeeper_operator.children.appdeployment_pod import build_pod_template, template_hash

from .appdeployment_apikey import KeyDecision, decide_key
from .appdeployment_evidence import live_facts
from .appdeployment_facts import AppEffect, EnsureVolumeClaim, ObservedApp
from .appdeployment_gate import hold_message, hold_reason, holders, required
from .appdeployment_rollout import Rollout, assess, counts, pod_trouble
from .outcome import Manifest, Outcome

AVAILABLE: Final = "Available"
RELEASED: Final = "Released"

_DEPLOYMENT: Final = "Deployment"


def references(resource: AppDeployment) -> Iterable[tuple[str, str]]:
    """Return the objects of the namespace whose events concern the application although it does not own them."""
    yield from required(resource)
    if claim := volume_claim_name(resource):
        yield "PersistentVolumeClaim", claim


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is decided about the pods."""

    children: tuple[Manifest, ...] = ()
    retained: tuple[tuple[str, str], ...] = ()
    held_by: tuple[Holder, ...] = ()
    refusal: str | None = None
    """Why no pod template can be made from the spec."""


def reconcile(
    resource: AppDeployment, observed: ObservedApp, *, now: datetime
) -> Outcome[AppDeploymentStatus, AppEffect]:
    """Decide which objects should exist, what may run, and what the status says."""
    unmet = holders(resource, observed)
    key = decide_key(resource, observed, now=now)
    plan = _plan(resource, observed, unmet=unmet, key=key)
    rollout = None
    if observed.deployment is not None:
        rollout = assess(resource, deployment=observed.deployment, pods=observed.pods, now=now)
    claims = (
        *_state(plan, key, rollout),
        _available(resource, observed, rollout),
        _released(plan),
    )
    return Outcome(
        status=_status(resource, observed, plan=plan, key=key, unmet=unmet, claims=claims, now=now),
        children=(
            *build_companions(resource),
            *build_monitoring(resource, served_kinds=observed.served_kinds),
            *plan.children,
        ),
        retained=plan.retained,
        effects=(*_volume_effects(resource, observed), *key.effects),
        requeue_after=_earliest(key.again_after, rollout.look_again_after if rollout is not None else None),
    )


def _plan(resource: AppDeployment, observed: ObservedApp, *, unmet: tuple[Holder, ...], key: KeyDecision) -> _Plan:
    live = observed.deployment
    unchanged = () if live is None else ((_DEPLOYMENT, resource.metadata.name),)
    scrape = needs_scrape_annotations(resource, served_kinds=observed.served_kinds)
    try:
        # What the gate judges: a key's rotation is no change of the application and is not held.
        judged = template_hash(build_pod_template(resource, keys=None, scrape_annotations=scrape))
        template = build_pod_template(resource, keys=key.accepted, scrape_annotations=scrape)
    except OverlayError as error:
        return _Plan(retained=unchanged, refusal=str(error))
    if unmet and judged != _released_hash(live):
        return _held(resource, live, held_by=unmet, unchanged=unchanged)
    if key.is_missing:
        return _Plan(retained=unchanged)
    return _Plan(children=(build_deployment(resource, template=template, released=judged),))


def _held(
    resource: AppDeployment,
    live: Mapping[str, Any] | None,
    *,
    held_by: tuple[Holder, ...],
    unchanged: tuple[tuple[str, str], ...],
) -> _Plan:
    """Keep the old pods, in the number that is wanted now. Where there are none yet, none are started."""
    if live is None or live["spec"].get("replicas") == resource.spec.replicas:
        return _Plan(retained=unchanged, held_by=held_by)
    released = _released_hash(live) or ""
    scaled = build_deployment(resource, template=live["spec"]["template"], released=released)
    return _Plan(children=(scaled,), held_by=held_by)


def _released_hash(live: Mapping[str, Any] | None) -> str | None:
    if live is None:
        return None
    found: str | None = live["metadata"].get("annotations", {}).get(RELEASED_TEMPLATE_ANNOTATION)
    return found


def _volume_effects(resource: AppDeployment, observed: ObservedApp) -> tuple[AppEffect, ...]:
    manifest = build_volume_claim(resource)
    if manifest is None:
        return ()
    claim = observed.claim
    if claim is None or (claim.is_ours and claim.too_small):
        return (EnsureVolumeClaim(manifest=manifest),)
    return ()


def _state(plan: _Plan, key: KeyDecision, rollout: Rollout | None) -> tuple[Claim, ...]:
    """Say in one Ready claim (and Reconciling or Stalled) how the application is."""
    if plan.refusal is not None:
        return stalled("InvalidPodTemplate", plan.refusal)
    if key.problem is not None:
        return stalled(key.problem.reason, key.problem.message)
    if plan.held_by:
        return reconciling(hold_reason(plan.held_by), hold_message(plan.held_by))
    if key.is_missing:
        return reconciling("GeneratingApiKey", "the API key is being generated; pods start once it is there")
    if rollout is None:
        return reconciling("RollingOut", "the Deployment is being created")
    match rollout.urgency:
        case "None":
            return ready(rollout.reason, rollout.message)
        case "Wait":
            return reconciling(rollout.reason, rollout.message)
        case "Failing":
            return retrying(rollout.reason, rollout.message)
        case "Person":
            return stalled(rollout.reason, rollout.message)


def _available(resource: AppDeployment, observed: ObservedApp, rollout: Rollout | None) -> Claim:
    """Say whether anybody serves, whatever becomes of a rollout."""
    available = counts(observed.deployment).available
    if available:
        return Claim(AVAILABLE, "True", "PodsServe", f"requests are served at {service_url(resource)}")
    if rollout is None:
        return Claim(AVAILABLE, "False", "NoDeployment", "no pod has been started yet")
    return Claim(AVAILABLE, "False", rollout.reason, rollout.message)


def _released(plan: _Plan) -> Claim:
    if plan.refusal is not None:
        return Claim(RELEASED, "False", "InvalidPodTemplate", plan.refusal)
    if plan.held_by:
        return Claim(RELEASED, "False", hold_reason(plan.held_by), hold_message(plan.held_by))
    return Claim(RELEASED, "True", "Released", "the pod template of the spec may run")


def _status(
    resource: AppDeployment,
    observed: ObservedApp,
    *,
    plan: _Plan,
    key: KeyDecision,
    unmet: tuple[Holder, ...],
    claims: tuple[Claim, ...],
    now: datetime,
) -> AppDeploymentStatus:
    previous = resource.status.conditions if resource.status is not None else ()
    generation, have = resource.metadata.generation, counts(observed.deployment)
    trouble = pod_trouble(resource, observed.pods, now=now)
    card = scorecard(live_facts(resource, observed, unmet=unmet, trouble=trouble))
    return AppDeploymentStatus(
        observed_generation=generation,
        conditions=dated(claims, previous=previous, generation=generation, now=now),
        replicas=have.total,
        ready_replicas=have.ready,
        updated_replicas=have.updated,
        available_replicas=have.available,
        selector=selector_text(resource),
        image=_image(observed.deployment),
        url=service_url(resource),
        score=card.score,
        checks=card.checks,
        held_by=plan.held_by,
        api_key=key.status,
    )


def _image(live: Mapping[str, Any] | None) -> str | None:
    containers = live["spec"]["template"]["spec"]["containers"] if live is not None else ()
    return next((each.get("image") for each in containers if each["name"] == CONTAINER_NAME), None)


def _earliest(*delays: timedelta | None) -> timedelta | None:
    return min((delay for delay in delays if delay is not None), default=None)
