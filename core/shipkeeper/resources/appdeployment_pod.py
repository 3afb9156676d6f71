"""The parts of an AppDeployment's spec that describe its pods: ports, environment, probes, resources, drain, overlay.

Spans of time that end in a pod's own fields are whole seconds, because the kubelet knows nothing finer.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from .base import (
    Quantity,
    ResourceModel,
    SecretKeyReference,
    cel,
    int_or_string,
    list_map,
    matching,
    parse_duration,
    with_cel,
)

MAIN_PORT_NAME = "http"
"""Name of the port given by `spec.port`, in the pod and in the Service."""


def _not_zero(text: str) -> str:
    if not parse_duration(text):
        raise ValueError(f"{text!r} is no time at all; write for example 10s or 5m")
    return text


_WHOLE_SECONDS_PATTERN = r"^([0-9]{1,5}(h|m|s))+$"
_POSITIVE_SECONDS_PATTERN = r"^0{0,4}[1-9][0-9]{0,4}(h|m|s)([0-9]{1,5}(h|m|s))*$"

WholeSeconds = Annotated[str, Field(pattern=_WHOLE_SECONDS_PATTERN, max_length=16)]
"""A span of time in whole seconds, for example 0s, 90s, 5m or 1h30m."""

PositiveSeconds = Annotated[str, Field(pattern=_POSITIVE_SECONDS_PATTERN, max_length=16), AfterValidator(_not_zero)]
"""A span of time of at least one second, for example 10s, 5m or 1h30m."""

PortNumber = Annotated[int, Field(ge=1, le=65535)]
"""A TCP or UDP port."""

VariableName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable, as every shell accepts it."""

_COUNT_PATTERN = r"^([0-9]{1,5}|[0-9]{1,2}%|100%)$"

CountOrPercentage = Annotated[
    int | str,
    AfterValidator(matching(_COUNT_PATTERN, "1 or 25%")),
    Field(json_schema_extra=int_or_string(_COUNT_PATTERN)),
]
"""A number of pods, or a percentage of the replicas such as 25%."""


class ExtraPort(ResourceModel):
    """A port that the application listens on besides its main one."""

    name: str = Field(min_length=1, max_length=15, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    """Name of the port in the pod and in the Service."""
    port: PortNumber
    """Number of the port, in the container and in the Service."""
    protocol: Literal["TCP", "UDP"] = "TCP"
    """Transport protocol."""


class ConfigMapKeyReference(ResourceModel):
    """One key of a ConfigMap in the resource's own namespace."""

    name: str = Field(min_length=1, max_length=253)
    """Name of the ConfigMap."""
    key: str = Field(min_length=1, max_length=253)
    """Key in the ConfigMap's data that holds the value."""


ONE_SOURCE = "env[].valueFrom needs exactly one of secretKeyRef, configMapKeyRef and fieldPath"


class VariableSource(ResourceModel):
    """Where an environment variable's value comes from."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldPath)].exists_one(x, x)", ONE_SOURCE)
        )
    )

    secret_key_ref: SecretKeyReference | None = None
    """A key of a Secret."""
    config_map_key_ref: ConfigMapKeyReference | None = None
    """A key of a ConfigMap."""
    field_path: str | None = Field(default=None, min_length=1, max_length=253)
    """A field of the pod itself, for example metadata.name or status.podIP."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [self.secret_key_ref, self.config_map_key_ref, self.field_path]
        if sum(source is not None for source in given) != 1:
            raise ValueError(ONE_SOURCE)
        return self


VALUE_OR_SOURCE = (
    'each of spec.env needs exactly one of value and valueFrom; write value: "" for a variable that is empty'
)


class EnvironmentVariable(ResourceModel):
    """One environment variable of the application's container."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("has(self.value) != has(self.valueFrom)", VALUE_OR_SOURCE))
    )

    name: VariableName
    """Name of the variable."""
    value: str | None = Field(default=None, max_length=32768)
    """The value itself. Never a secret: use valueFrom.secretKeyRef for those."""
    value_from: VariableSource | None = None
    """Where the value is read from when the pod starts."""

    @model_validator(mode="after")
    def _has_value_or_source(self) -> Self:
        if (self.value is None) == (self.value_from is None):
            raise ValueError(VALUE_OR_SOURCE)
        return self


PROBE_COMMAND = (
    "a probe's command goes with type: Command and with no other type; set type: Command or remove the command"
)
_PROBE_RULES = with_cel(cel("(self.type == 'Command') == (has(self.command) && size(self.command) > 0)", PROBE_COMMAND))


class Probe(ResourceModel):
    """How the kubelet asks a container a question."""

    model_config = ConfigDict(json_schema_extra=_PROBE_RULES)

    type: Literal["HTTP", "TCP", "Command", "None"] = "HTTP"
    """HTTP: GET of the path, 200-399 is a yes. TCP: the port accepts. Command: exit code 0. None: no probe."""
    path: str = Field(default="/", min_length=1, max_length=1024, pattern=r"^/")
    """Path of the HTTP request."""
    port: PortNumber | None = None
    """Port of the HTTP request or the TCP connection. Default: spec.port."""
    command: tuple[Annotated[str, Field(max_length=4096)], ...] | None = Field(default=None, max_length=32)
    """Program and arguments of a Command probe, run in the container without a shell."""
    initial_delay: WholeSeconds = "0s"
    """Wait this long after the container started before the first try."""
    period: PositiveSeconds = "10s"
    """Time between two tries."""
    timeout: PositiveSeconds = "3s"
    """A try without an answer after this long has failed."""
    failure_threshold: int = Field(default=3, ge=1, le=1000)
    """Failures in a row that count as a no."""

    @model_validator(mode="after")
    def _command_fits_type(self) -> Self:
        if (self.type == "Command") != bool(self.command):
            raise ValueError(PROBE_COMMAND)
        return self


class LivenessProbe(Probe):
    """Is the process alive? A container that says no is restarted."""

    path: str = Field(default="/health", min_length=1, max_length=1024, pattern=r"^/")
    """Path of the HTTP request."""


class ReadinessProbe(Probe):
    """Can the pod serve requests now? A pod that says no gets none, and a rollout waits for it."""

    path: str = Field(default="/ready", min_length=1, max_length=1024, pattern=r"^/")
    """Path of the HTTP request."""
    period: PositiveSeconds = "5s"
    """Time between two tries."""
    success_threshold: int = Field(default=1, ge=1, le=100)
    """Successes in a row after which the pod counts as ready again."""


class StartupProbe(Probe):
    """Has the process started? The other probes wait for it; a container that never says yes is restarted."""

    path: str = Field(default="/health", min_length=1, max_length=1024, pattern=r"^/")
    """Path of the HTTP request."""
    period: PositiveSeconds = "2s"
    """Time between two tries."""
    failure_threshold: int = Field(default=60, ge=1, le=1000)
    """Failures in a row that count as a no: with the period, the time that a start may take."""


class Probes(ResourceModel):
    """The three questions of the kubelet. Each has a default that suits an HTTP application."""

    liveness: LivenessProbe = LivenessProbe()
    """Is the process alive?"""
    readiness: ReadinessProbe = ReadinessProbe()
    """Can the pod serve requests now?"""
    startup: StartupProbe = StartupProbe()
    """Has the process started?"""


class ResourceRequests(ResourceModel):
    """What the scheduler sets aside for one pod."""

    cpu: Quantity = "50m"
    """CPU time, in cores or thousandths of one (m)."""
    memory: Quantity = "128Mi"
    """Memory."""


class ResourceLimits(ResourceModel):
    """What one pod may use at most."""

    cpu: Quantity | None = None
    """CPU time: above it the container is slowed down. Without one it may use what the node has left."""
    memory: Quantity | None = None
    """Memory: above it the container is killed. Without one a leak can take the whole node."""


class Resources(ResourceModel):
    """Compute resources of the application's container."""

    requests: ResourceRequests = ResourceRequests()
    """What the scheduler sets aside for one pod."""
    limits: ResourceLimits = ResourceLimits()
    """What one pod may use at most."""


DRAIN_ORDER = (
    "spec.drain.delay must be shorter than spec.drain.terminationGracePeriod: "
    "the delay counts against the grace period, and the rest of it is what the application has to finish its work"
)


class Drain(ResourceModel):
    """How a pod goes: first out of the Service, then a signal, then time to finish."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(cel("duration(self.delay) < duration(self.terminationGracePeriod)", DRAIN_ORDER))
    )

    delay: WholeSeconds = "5s"
    """Wait this long before SIGTERM, so that every proxy has stopped sending requests. 0s: no wait."""
    termination_grace_period: PositiveSeconds = "60s"
    """The process is killed this long after it was asked to stop, the delay included. Longer than its longest work."""

    @model_validator(mode="after")
    def _delay_fits_grace_period(self) -> Self:
        if parse_duration(self.delay) >= parse_duration(self.termination_grace_period):
            raise ValueError(DRAIN_ORDER)
        return self


Labels = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=64)]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=16384)]], Field(max_length=64)]


class PodMetadataOverlay(ResourceModel):
    """Labels and annotations to add to the pods."""

    labels: Labels = Field(default_factory=dict)
    """Labels to add. Those that the Service selects by cannot be changed."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations to add."""


class PodTemplateOverlay(ResourceModel):
    """A strategic-merge patch of the pod template, for what the spec does not name.

    Lists are merged as `kubectl patch --type strategic` does: containers, environment variables and volumes by name,
    volume mounts by mountPath, ports by containerPort. The application's container is named `app`.
    """

    metadata: PodMetadataOverlay = PodMetadataOverlay()
    """Labels and annotations to add to the pods."""
    spec: Annotated[
        dict[str, Any], Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True})
    ] = Field(default_factory=dict)
    """Fields of a core/v1 PodSpec to add or to change."""


EnvironmentVariables = Annotated[
    tuple[EnvironmentVariable, ...], Field(max_length=128, json_schema_extra=list_map("name"))
]
