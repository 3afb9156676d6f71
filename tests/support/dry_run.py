"""Asking a real API server whether it would take an object, without storing it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from shipkeeper.resources.base import GROUP, VERSION
from shipkeeper.resources.kinds import Kind

_UNCHECKED = "some validation rules were not checked because the object was invalid"


@dataclass(frozen=True)
class Refusal:
    """One cause of a refusal, as the API server gives it."""

    field: str
    message: str


class RefusedError(Exception):
    """The API server did not take an object."""

    def __init__(self, causes: tuple[Refusal, ...], message: str) -> None:
        super().__init__(message)
        self.causes = causes
        self.message = message


class Admission:
    """The API server's answers to objects of our kinds in one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.namespace = namespace
        self._api = client.CustomObjectsApi(config.new_client_from_config(config_file=str(kubeconfig)))

    def create(self, kind: Kind, manifest: Mapping[str, Any], *, dry_run: bool = True) -> dict[str, Any]:
        """Return the object as it would be stored. Raises RefusedError."""
        options = {"dry_run": "All"} if dry_run else {}
        return self._answer(
            self._api.create_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            kind.plural,
            dict(manifest),
            field_validation="Strict",
            **options,
        )

    def ensure(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Store an object unless one of its name is there; return the one that is."""
        name = manifest["metadata"]["name"]
        try:
            found: Any = self._api.get_namespaced_custom_object(GROUP, VERSION, self.namespace, kind.plural, name)
        except ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return self.create(kind, manifest, dry_run=False)
        return dict(found)

    def replace(self, kind: Kind, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the object as it would be stored in place of the one of that name. Raises RefusedError."""
        name = manifest["metadata"]["name"]
        return self._answer(
            self._api.replace_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            kind.plural,
            name,
            dict(manifest),
            field_validation="Strict",
            dry_run="All",
        )

    def write_status(
        self, kind: Kind, name: str, status: Mapping[str, Any], *, dry_run: bool = False
    ) -> dict[str, Any]:
        """Merge a status into the object's. Raises RefusedError."""
        return self._answer(
            self._api.patch_namespaced_custom_object_status,
            GROUP,
            VERSION,
            self.namespace,
            kind.plural,
            name,
            {"status": dict(status)},
            **({"dry_run": "All"} if dry_run else {}),
        )

    @staticmethod
    def _answer(ask: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = ask(*arguments, **options)
        except ApiException as error:
            status = json.loads(error.body or "{}")
            causes = status.get("details", {}).get("causes", [])
            told = tuple(
                Refusal(cause.get("field", ""), cause["message"])
                for cause in causes
                if _UNCHECKED not in cause["message"]
            )
            raise RefusedError(told, status["message"]) from None
        return answer
