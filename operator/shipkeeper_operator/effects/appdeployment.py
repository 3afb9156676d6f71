"""Writes beside an application's children: its generated API key and its volume claim.

Every step of a rotation is made on the Secret as it is at that moment and refused by the API server if it has changed
since, so that a step that is done twice, or by two operators, never loses a key that pods or callers still use.
"""

import base64
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol, assert_never

from kubernetes.aio.client import ApiException

from shipkeeper_operator.children.appdeployment_names import ACCEPTED_KEY, ACCEPTED_PREVIOUS_KEY, CALLER_KEY
from shipkeeper_operator.children.metadata import MANAGED_BY
from shipkeeper_operator.errors import NameTakenError
from shipkeeper_operator.reconcile.appdeployment_facts import (
    AppEffect,
    DeleteApiKey,
    DistributeNewKey,
    EnsureVolumeClaim,
    GenerateApiKey,
    PublishNewKey,
    RetirePreviousKey,
)

from .appdeployment_keys import (
    ACCEPTED_ID,
    CALLER_ID,
    ISSUED_AT,
    PREVIOUS_ID,
    REVISION,
    VALID_UNTIL,
    new_key,
    new_key_id,
)

_SECRET = "Secret"  # noqa: S105 # A kind.


class ObjectWriter(Protocol):
    """The few requests that these writes need."""

    async def fetch(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Read one object from the API server itself, or None where there is none."""

    async def create(self, kind: str, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; ApiException 409 where there is one of that name."""

    async def merge(self, kind: str, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Merge-patch an object; with a resourceVersion in the body, ApiException 409 where it has changed."""

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str) -> None:
        """Delete exactly that object. It may be gone already."""


class ApplicationEffects:
    """Performs the effects of applications."""

    def __init__(self, writer: ObjectWriter, *, remember: Callable[[Mapping[str, Any]], object]) -> None:
        """Take what to write with, and who is told of a written volume claim before the watch echoes it."""
        self._writer = writer
        self._remember = remember

    async def perform(self, effect: AppEffect) -> None:
        """Do one write. Raises ApiException or NameTakenError, neither of which holds a secret."""
        match effect:
            case GenerateApiKey():
                await self._generate(effect)
            case DistributeNewKey():
                await self._distribute(effect)
            case PublishNewKey():
                await self._publish(effect)
            case RetirePreviousKey():
                await self._retire(effect)
            case DeleteApiKey():
                await self._writer.delete(_SECRET, effect.namespace, effect.name, uid=effect.uid)
            case EnsureVolumeClaim():
                await self._ensure_claim(effect)
            case _:
                assert_never(effect)

    async def _generate(self, effect: GenerateApiKey) -> None:
        namespace, name = effect.metadata["namespace"], effect.metadata["name"]
        if effect.replaces is not None:
            await self._writer.delete(_SECRET, namespace, name, uid=effect.replaces)
        key, key_id = _encoded(new_key()), new_key_id()
        annotations = {
            CALLER_ID: key_id,
            ACCEPTED_ID: key_id,
            ISSUED_AT: _text(effect.issued_at),
            REVISION: effect.revision or "",
        }
        body = {
            "apiVersion": "v1",
            "kind": _SECRET,
            "type": "Opaque",
            "metadata": {**effect.metadata, "annotations": annotations},
            "data": {CALLER_KEY: key, ACCEPTED_KEY: key},
        }
        try:
            await self._writer.create(_SECRET, namespace, body)
        except ApiException as error:
            if error.status != 409:  # Somebody was faster: what is there is observed next.
                raise

    async def _distribute(self, effect: DistributeNewKey) -> None:
        secret = await self._writer.fetch(_SECRET, effect.namespace, effect.name)
        if secret is None or _said(secret, ACCEPTED_ID) != effect.caller_id or _said(secret, PREVIOUS_ID):
            return  # Another rotation has begun.
        annotations = {
            ACCEPTED_ID: new_key_id(),
            PREVIOUS_ID: effect.caller_id,
            ISSUED_AT: _text(effect.issued_at),
            REVISION: effect.revision or "",
            VALID_UNTIL: None,
        }
        data = {ACCEPTED_KEY: _encoded(new_key()), ACCEPTED_PREVIOUS_KEY: secret["data"][CALLER_KEY]}
        await self._change(secret, annotations=annotations, data=data)

    async def _publish(self, effect: PublishNewKey) -> None:
        secret = await self._writer.fetch(_SECRET, effect.namespace, effect.name)
        if secret is None or _said(secret, ACCEPTED_ID) != effect.accepted_id:
            return
        annotations = {CALLER_ID: effect.accepted_id, VALID_UNTIL: _text(effect.previous_valid_until)}
        await self._change(secret, annotations=annotations, data={CALLER_KEY: secret["data"][ACCEPTED_KEY]})

    async def _retire(self, effect: RetirePreviousKey) -> None:
        secret = await self._writer.fetch(_SECRET, effect.namespace, effect.name)
        if secret is None or _said(secret, CALLER_ID) != effect.accepted_id:
            return
        annotations = {PREVIOUS_ID: None, VALID_UNTIL: None}
        await self._change(secret, annotations=annotations, data={ACCEPTED_PREVIOUS_KEY: None})

    async def _change(
        self, secret: Mapping[str, Any], *, annotations: Mapping[str, str | None], data: Mapping[str, str | None]
    ) -> None:
        metadata = secret["metadata"]
        body = {
            "metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": annotations},
            "data": data,
        }
        await self._writer.merge(_SECRET, metadata["namespace"], metadata["name"], body)

    async def _ensure_claim(self, effect: EnsureVolumeClaim) -> None:
        manifest = effect.manifest
        kind, metadata = manifest["kind"], manifest["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        live = await self._writer.fetch(kind, namespace, name)
        if live is None:
            self._remember(await self._writer.create(kind, namespace, manifest))
            return
        labels = live["metadata"].get("labels", {})
        if any(labels.get(label) != value for label, value in metadata["labels"].items() if label not in MANAGED_BY):
            raise NameTakenError(kind, namespace, name)
        growth = {"metadata": {"labels": metadata["labels"]}, "spec": {"resources": manifest["spec"]["resources"]}}
        self._remember(await self._writer.merge(kind, namespace, name, growth))


def _said(secret: Mapping[str, Any], annotation: str) -> str:
    text: str = secret["metadata"].get("annotations", {}).get(annotation, "")
    return text


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds")
