"""The life of a generated API key: made once, rotated without a moment in which a caller's key is refused.

Truth about the rotation stands in the Secret itself. Its steps: pods learn the new key while callers still read the
old one; once every pod accepts both, callers read the new one; once the overlap is over, pods forget the old one.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from shipkeeper.resources.appdeployment import ApiKeyStatus, AppDeployment
from shipkeeper.resources.appdeployment_companions import ApiKeyRotation
from shipkeeper.resources.base import parse_duration
from shipkeeper_operator.children.appdeployment_names import (
    CALLER_KEY,
    KEY_IDS_ANNOTATION,
    api_key_secret_name,
    app_metadata,
)
from shipkeeper_operator.children.appdeployment_pod import AcceptedKeys

from .appdeployment_facts import (
    AppEffect,
    DeleteApiKey,
    DistributeNewKey,
    GenerateApiKey,
    ObservedApiKey,
    ObservedApp,
    PublishNewKey,
    RetirePreviousKey,
)
from .appdeployment_rollout import is_complete


@dataclass(frozen=True)
class KeyProblem:
    """Why there can be no key, and what to do."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class KeyDecision:
    """What follows for the API key."""

    accepted: AcceptedKeys | None = None
    """What the pods should accept. None: there is no generated key (yet)."""
    is_missing: bool = False
    """Whether pods have to wait for a key to be generated."""
    effects: tuple[AppEffect, ...] = ()
    status: ApiKeyStatus | None = None
    again_after: timedelta | None = None
    """When the next step of a rotation is due."""
    problem: KeyProblem | None = None


def decide_key(resource: AppDeployment, observed: ObservedApp, *, now: datetime) -> KeyDecision:
    """Decide the next step for the application's API key."""
    api_key, found = resource.spec.api_key, observed.api_key
    if api_key is None or api_key.key_from is not None:
        return _without_generated_key(resource, observed)
    if found is not None and not found.is_ours:
        name = api_key_secret_name(resource)
        text = f"Secret {name} exists and does not belong to this application: rename it, or name it in apiKey.keyFrom"
        return KeyDecision(is_missing=True, problem=KeyProblem("NameTaken", text))
    rotation = api_key.rotation or ApiKeyRotation()
    if found is None or not found.is_whole:
        generate = GenerateApiKey(
            metadata=app_metadata(resource, name=api_key_secret_name(resource)),
            revision=rotation.revision,
            issued_at=now,
            replaces=found.uid if found is not None else None,
        )
        return KeyDecision(is_missing=True, effects=(generate,))
    step, again_after = _next_step(resource, observed, found, rotation=rotation, now=now)
    return KeyDecision(
        accepted=found.accepted,
        effects=() if step is None else (step,),
        status=_status(resource, found),
        again_after=again_after,
    )


def _without_generated_key(resource: AppDeployment, observed: ObservedApp) -> KeyDecision:
    """Delete a key that was generated before, once no pod reads it any more. Until then status remembers it."""
    found, api_key = observed.api_key, resource.spec.api_key
    if found is not None and found.is_ours:
        if _pods_have_key(observed):
            return KeyDecision(status=_status(resource, found))
        metadata = resource.metadata
        delete = DeleteApiKey(namespace=metadata.namespace, name=api_key_secret_name(resource), uid=found.uid)
        return KeyDecision(effects=(delete,), status=_status(resource, found))
    if api_key is None or api_key.key_from is None:
        return KeyDecision()
    reference = api_key.key_from
    return KeyDecision(status=ApiKeyStatus(secret_name=reference.name, key=reference.key, phase="External"))


def _pods_have_key(observed: ObservedApp) -> bool:
    """Whether old pods may still start from a template that reads the generated Secret."""
    deployment = observed.deployment
    if deployment is None:
        return False
    annotations = deployment["spec"]["template"]["metadata"].get("annotations", {})
    return KEY_IDS_ANNOTATION in annotations or not is_complete(deployment)


def _next_step(
    resource: AppDeployment,
    observed: ObservedApp,
    found: ObservedApiKey,
    *,
    rotation: ApiKeyRotation,
    now: datetime,
) -> tuple[AppEffect | None, timedelta | None]:
    """Return the step that is due now, or how long until one is."""
    namespace, name = resource.metadata.namespace, api_key_secret_name(resource)
    if found.caller_id != found.accepted.current:
        if not _every_pod_accepts(observed, found.accepted):
            return None, None  # The Deployment's own events wake us.
        until = now + parse_duration(rotation.overlap)
        publish = PublishNewKey(
            namespace=namespace, name=name, accepted_id=found.accepted.current, previous_valid_until=until
        )
        return publish, None
    if found.accepted.previous is not None:
        left = (found.previous_valid_until or now) - now
        if left > timedelta(0):
            return None, left
        return RetirePreviousKey(namespace=namespace, name=name, accepted_id=found.accepted.current), None
    left_to_age = found.issued_at + parse_duration(rotation.every) - now if rotation.every is not None else None
    if rotation.revision != found.revision or (left_to_age is not None and left_to_age <= timedelta(0)):
        distribute = DistributeNewKey(
            namespace=namespace, name=name, caller_id=found.caller_id, revision=rotation.revision, issued_at=now
        )
        return distribute, None
    return None, left_to_age


def _every_pod_accepts(observed: ObservedApp, accepted: AcceptedKeys) -> bool:
    deployment = observed.deployment
    if deployment is None:
        return True  # No pod has started yet.
    annotations = deployment["spec"]["template"]["metadata"].get("annotations", {})
    return annotations.get(KEY_IDS_ANNOTATION) == accepted.ids and is_complete(deployment)


def _status(resource: AppDeployment, found: ObservedApiKey) -> ApiKeyStatus:
    is_distributing = found.caller_id != found.accepted.current
    is_overlapping = not is_distributing and found.accepted.previous is not None
    return ApiKeyStatus(
        secret_name=api_key_secret_name(resource),
        key=CALLER_KEY,
        phase="Distributing" if is_distributing else "Overlapping" if is_overlapping else "Current",
        key_id=found.caller_id,
        issued_at=found.issued_at,
        previous_valid_until=found.previous_valid_until if is_overlapping else None,
    )
