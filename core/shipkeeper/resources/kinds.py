"""What a CRD says beyond its schema: names, columns, subresources. One `Kind` per resource."""

from dataclasses import dataclass
from typing import Any, Literal

from .base import API_VERSION, MAX_RESOURCE_NAME, Resource, ResourceModel, StatusModel, cel

CATEGORY = "shipkeeper"

NAME_TOO_LONG = (
    f"metadata.name must be at most {MAX_RESOURCE_NAME} characters, so that the names of the objects made from it "
    "fit into 63: choose a shorter name"
)
NAME_RULE = cel(f"size(self.metadata.name) <= {MAX_RESOURCE_NAME}", NAME_TOO_LONG)


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

    @property
    def all_validations(self) -> tuple[dict[str, str], ...]:
        """The CEL rules over the whole object: the one that holds for the name of every kind, then the kind's own."""
        return (NAME_RULE, *self.validations)

    def parse(self, manifest: dict[str, Any]) -> Resource[Any, Any]:
        """Read an object as the API server or a YAML file gives it.

        Raises ValueError for another kind or too long a name, and pydantic.ValidationError (a ValueError too), whose
        errors name the field, for all else.
        """
        if manifest.get("apiVersion") != API_VERSION or manifest.get("kind") != self.kind:
            raise ValueError(
                f"expected apiVersion {API_VERSION} and kind {self.kind}, "
                f"got {manifest.get('apiVersion')!r} and {manifest.get('kind')!r}"
            )
        resource = Resource[self.spec, self.status].model_validate(manifest)  # type: ignore[name-defined]
        if len(resource.metadata.name) > MAX_RESOURCE_NAME:
            raise ValueError(NAME_TOO_LONG)
        return resource
