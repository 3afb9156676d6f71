"""The pieces that every resource model is made of, and the rules by which a model becomes a structural schema.

A resource model is the single source of three things: the CRD the API server enforces, the validation an
application or a shell command gets without a cluster, and the API reference. So every field carries its description,
bounds and default here and nowhere else.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

GROUP = "shipkeeper.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# A child's name is the resource's name and a suffix of at most 11 characters, and a label value ends at 63.
MAX_RESOURCE_NAME = 52


class ResourceModel(BaseModel):
    """A part of a resource as Kubernetes writes it: camelCase on the wire, unknown fields refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the model as the API server stores it: camelCase, JSON types, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(rule: str, message: str, *, field_path: str | None = None) -> dict[str, str]:
    """Return one CEL validation for `x-kubernetes-validations`; the message names the field and the fix."""
    validation = {"rule": rule, "message": message}
    if field_path is not None:
        validation["fieldPath"] = field_path
    return validation


def with_cel(*validations: dict[str, str], **extra: Any) -> dict[str, Any]:
    """Return the JSON schema extra that puts CEL validations (and other extensions) on a model or a field."""
    return {"x-kubernetes-validations": list(validations), **extra}


def list_map(*keys: str) -> dict[str, Any]:
    """Return the JSON schema extra of a list that server-side apply merges by these keys (wire names)."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


# At most eight digits a part: what fits into 32 characters then also fits into a timedelta.
_DURATION_PATTERN = r"^([0-9]{1,8}(\.[0-9]{1,9})?(ms|s|m|h|d))+$"
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION_LENGTH = 32
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> timedelta:
    """Turn `90s`, `1h30m`, `250ms` or `7d` into a timedelta. A day is 24 hours.

    Raises ValueError for any other form.
    """
    if len(text) > _DURATION_LENGTH or not re.fullmatch(_DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 5m, 1h30m or 7d")
    parts = _DURATION_PART.findall(text)
    return timedelta(seconds=sum(float(amount) * _UNIT_SECONDS[unit] for amount, unit in parts))


def _checked_duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[
    str, Field(pattern=_DURATION_PATTERN, max_length=_DURATION_LENGTH), AfterValidator(_checked_duration)
]
"""A span of time as text, as Kubernetes and Go programs write it; `parse_duration` gives its value."""


_QUANTITY_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"


def matching(pattern: str, examples: str) -> Callable[[int | str], int | str]:
    """Return a validator of a value that may be written as a number or as text, as Kubernetes allows for amounts."""

    def check(value: int | str) -> int | str:
        if not re.fullmatch(pattern, str(value)):
            raise ValueError(f"{value!r} is not understood; write for example {examples}")
        return value

    return check


def int_or_string(pattern: str) -> dict[str, Any]:
    """Return the JSON schema extra of such a value: the pattern holds for text, and a number must not be negative."""
    return {"x-kubernetes-int-or-string": True, "minimum": 0, "pattern": pattern}


Quantity = Annotated[
    int | str,
    AfterValidator(matching(_QUANTITY_PATTERN, "2, 500m, 128Mi or 1Gi")),
    Field(json_schema_extra=int_or_string(_QUANTITY_PATTERN)),
]
"""An amount of a compute resource as Kubernetes writes it: 2, 500m, 128Mi, 1Gi."""


def _to_instant(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _with_zone(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"{instant.isoformat()} has no time zone; write for example {instant.isoformat()}Z")
    return instant


def _rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


Instant = Annotated[
    datetime,
    BeforeValidator(_to_instant),
    AfterValidator(_with_zone),
    PlainSerializer(_rfc3339, return_type=str, when_used="json"),
    Field(json_schema_extra={"type": "string", "format": "date-time"}),
]
"""A point in time, RFC 3339 with whole seconds in UTC on the wire (what `kubectl` and kstatus expect)."""


class SecretKeyReference(ResourceModel):
    """One key of a Secret in the resource's own namespace."""

    # Its two fields mean nothing apart: server-side apply must not mix those of two managers.
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: str = Field(min_length=1, max_length=253)
    """Name of the Secret."""
    key: str = Field(min_length=1, max_length=253)
    """Key in the Secret's data that holds the value."""


class LocalReference(ResourceModel):
    """Another Shipkeeper resource in the same namespace."""

    name: str = Field(min_length=1, max_length=MAX_RESOURCE_NAME)
    """Name of the resource."""


class Condition(ResourceModel):
    """One observation of a resource's state, as `metav1.Condition` defines it."""

    type: str = Field(min_length=1, max_length=316)
    """What is claimed, in CamelCase: Ready, Reconciling, Stalled or one of the kind's own."""
    status: Literal["True", "False", "Unknown"]
    """Whether the claim holds."""
    observed_generation: int | None = Field(default=None, ge=0, json_schema_extra={"format": "int64"})
    """The generation of the spec that the claim is about."""
    last_transition_time: Instant
    """When the status last changed."""
    reason: str = Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    """Why, as one stable CamelCase word that programs may rely on."""
    message: str = Field(max_length=32768)
    """What a person should know or do."""


class StatusModel(ResourceModel):
    """What every status has. Follows kstatus, so that `kubectl wait`, Argo CD and Flux understand it."""

    observed_generation: int | None = Field(default=None, ge=0, json_schema_extra={"format": "int64"})
    """The generation of the spec that this status is about."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=32, json_schema_extra=list_map("type"))
    """Ready; Reconciling and Stalled only while they are true; and the kind's own conditions."""


class ObjectMeta(BaseModel):
    """The part of a Kubernetes object's metadata that decisions need; the rest is kept by the API server alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    deletion_timestamp: Instant | None = None
    creation_timestamp: Instant | None = None
    finalizers: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


SpecT = TypeVar("SpecT", bound=ResourceModel)
StatusT = TypeVar("StatusT", bound=StatusModel)


class Resource(BaseModel, Generic[SpecT, StatusT]):
    """A whole resource as it is read from a manifest or from the API server."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    api_version: str = API_VERSION
    kind: str
    metadata: ObjectMeta
    spec: SpecT
    status: StatusT | None = None
