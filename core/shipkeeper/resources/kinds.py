"""What a CRD says beyond its schema: names, columns, subresources. One `Kind` per resource."""

from dataclasses import dataclass
from typing import Any, Literal

from .base import API_VERSION, Resource, ResourceModel, StatusModel

CATEGORY = "shipkeeper"


@dataclass(frozen=True)
class PrinterColumn:
    """One column of `kubectl get`. Priority 0 is always shown, 1 only with `-o wide`."""

    name: str
    json_path: str
    description: str
    type: Literal["string", "integer", "number", "boolean", "date"] = "string"
    priority: int = 0


@dataclass(frozen=True)
class ScaleSubresource:
    """Where `kubectl scale` and a HorizontalPodAutoscaler find the replicas of a resource."""

    spec_replicas_path: str
    status_replicas_path: str
    label_selector_path: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A custom resource: its names, its models and how `kubectl` shows it."""

    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    spec: type[ResourceModel]
    status: type[StatusModel]
    description: str
    columns: tuple[PrinterColumn, ...]
    validations: tuple[dict[str, str], ...] = ()
    """CEL rules over the whole object, for what needs `self.metadata` or both spec and its old form."""
    scale: ScaleSubresource | None = None

    def parse(self, manifest: dict[str, Any]) -> Resource[Any, Any]:
        """Read an object as the API server or a YAML file gives it.

        Raises pydantic.ValidationError, whose errors name the field.
        """
        if manifest.get("apiVersion") != API_VERSION or manifest.get("kind") != self.kind:
            raise ValueError(
                f"expected apiVersion {API_VERSION} and kind {self.kind}, "
                f"got {manifest.get('apiVersion')!r} and {manifest.get('kind')!r}"
            )
        return Resource[self.spec, self.status].model_validate(manifest)  # type: ignore[name-defined]
