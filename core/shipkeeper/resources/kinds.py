"""What a CRD says beyond its schema: names, columns, subresources. One `Kind` per resource."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from .base import API_VERSION, MAX_RESOURCE_NAME, Resource, ResourceModel, StatusModel, cel

CATEGORY = "shipkeeper"

# The name becomes the name of a Service, which must be a DNS label, and the value of a label.
_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_TOO_LONG = (
    f"metadata.name must be at most {MAX_RESOURCE_NAME} characters, so that the names of the objects made from it "
    "fit into 63: choose a shorter name"
)
NAME_NOT_A_LABEL = (
    "metadata.name must begin with a lower-case letter and hold only lower-case letters, digits and '-', "
    "because a Service gets this name: replace what is not allowed, for example each '.' by '-'"
)
NAME_RULES = (
    cel(f"size(self.metadata.name) <= {MAX_RESOURCE_NAME}", NAME_TOO_LONG),
    cel(f"self.metadata.name.matches('{_NAME_PATTERN}')", NAME_NOT_A_LABEL),
)


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
        """The CEL rules over the whole object: those that hold for the name of every kind, then the kind's own."""
        return (*NAME_RULES, *self.validations)

    def parse(self, manifest: dict[str, Any]) -> Resource[Any, Any]:
        """Read an object as the API server or a YAML file gives it.

        Raises ValueError for another kind or a name that cannot be used, and pydantic.ValidationError (a ValueError
        too), whose errors name the field, for all else.
        """
        if manifest.get("apiVersion") != API_VERSION or manifest.get("kind") != self.kind:
            raise ValueError(
                f"expected apiVersion {API_VERSION} and kind {self.kind}, "
                f"got {manifest.get('apiVersion')!r} and {manifest.get('kind')!r}"
            )
        resource = Resource[self.spec, self.status].model_validate(manifest)  # type: ignore[name-defined]
        check_name(resource.metadata.name)
        return resource


def check_name(name: str) -> None:
    """Refuse a resource's name from which the names of its children cannot be made, as the API server does.

    Raises ValueError.
    """
    if len(name) > MAX_RESOURCE_NAME:
        raise ValueError(NAME_TOO_LONG)
    if not re.fullmatch(_NAME_PATTERN, name):
        raise ValueError(NAME_NOT_A_LABEL)
