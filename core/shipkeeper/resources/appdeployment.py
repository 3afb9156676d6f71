"""AppDeployment: an application, what it needs to run and what must be true before it rolls out."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .appdeployment_companions import (
    ApiKey,
    Database,
    DisruptionBudget,
    Monitoring,
    NetworkPolicy,
    RedisConnection,
    Requirements,
    Rollout,
    Service,
    Spread,
)
from .appdeployment_pod import (
    MAIN_PORT_NAME,
    Drain,
    EnvironmentVariables,
    ExtraPort,
    PodTemplateOverlay,
    PortNumber,
    Probes,
    Resources,
)
from .base import Instant, Resource, ResourceModel, StatusModel, cel, list_map, with_cel
from .kinds import Kind, PrinterColumn, ScaleSubresource

SQLITE_REPLICAS = (
    "spec.replicas must be 0 or 1 with spec.database.sqlite: a SQLite file has one writer; "
    "give spec.database.urlFrom (PostgreSQL) to run more"
)
EXTRA_PORT_NAME = f"spec.extraPorts must not use the name {MAIN_PORT_NAME}: it is the name of spec.port; choose another"
EXTRA_PORT_NUMBER = (
    "spec.extraPorts must each have their own port and protocol, different from spec.port and from spec.service.port"
)
RESERVED_VARIABLE = (
    "spec.env must not set a variable that spec.database, spec.redis or spec.apiKey sets: remove it there, "
    "or choose another name in their field variable"
)
ONE_VARIABLE_EACH = "spec.database, spec.redis and spec.apiKey must each set a variable of a different name"
DNS_NAME = (
    "metadata.name must be a DNS label that starts with a letter (it becomes the name of the Service): "
    "lower-case letters, digits and '-'"
)

_PORT_NUMBER_RULE = (
    "!has(self.extraPorts) || self.extraPorts.all(p, "
    "self.extraPorts.exists_one(q, q.port == p.port && q.protocol == p.protocol) && "
    "!(p.protocol == 'TCP' && (p.port == self.port || p.port == self.service.port)))"
)
_RESERVED_VARIABLE_RULE = (
    "!has(self.env) || self.env.all(e, !(has(self.database) && e.name == self.database.variable) && "
    "!(has(self.redis) && e.name == self.redis.variable) && "
    "!(has(self.apiKey) && (e.name == self.apiKey.variable || e.name == self.apiKey.previousVariable)))"
)
_ONE_VARIABLE_EACH_RULE = (
    "!(has(self.database) && has(self.redis) && self.database.variable == self.redis.variable) && "
    "!(has(self.database) && has(self.apiKey) && self.database.variable in "
    "[self.apiKey.variable, self.apiKey.previousVariable]) && "
    "!(has(self.redis) && has(self.apiKey) && self.redis.variable in "
    "[self.apiKey.variable, self.apiKey.previousVariable])"
)

Argument = Annotated[str, Field(max_length=8192)]


class ImagePullSecret(ResourceModel):
    """A Secret of type kubernetes.io/dockerconfigjson in the same namespace."""

    name: str = Field(min_length=1, max_length=253)
    """Name of the Secret."""


class AppDeploymentSpec(ResourceModel):
    """The application as it should run."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel(
                "!has(self.database) || !has(self.database.sqlite) || self.replicas <= 1",
                SQLITE_REPLICAS,
                field_path=".replicas",
            ),
            cel(
                f"!has(self.extraPorts) || self.extraPorts.all(p, p.name != '{MAIN_PORT_NAME}')",
                EXTRA_PORT_NAME,
                field_path=".extraPorts",
            ),
            cel(_PORT_NUMBER_RULE, EXTRA_PORT_NUMBER, field_path=".extraPorts"),
            cel(_RESERVED_VARIABLE_RULE, RESERVED_VARIABLE, field_path=".env"),
            cel(_ONE_VARIABLE_EACH_RULE, ONE_VARIABLE_EACH),
        )
    )

    image: str = Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/:@]*$")
    """Container image, with a tag or (better) a digest."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When a node fetches the image from its registry."""
    image_pull_secrets: tuple[ImagePullSecret, ...] = Field(
        default=(), max_length=16, json_schema_extra=list_map("name")
    )
    """Credentials of the registry."""
    replicas: int = Field(default=1, ge=0, le=1000, json_schema_extra={"format": "int32"})
    """Number of pods. `kubectl scale` and a HorizontalPodAutoscaler on the AppDeployment write it; we never do."""
    command: tuple[Argument, ...] = Field(default=(), max_length=64)
    """Program to start instead of the image's entry point."""
    args: tuple[Argument, ...] = Field(default=(), max_length=128)
    """Arguments of the program, instead of the image's."""
    port: PortNumber = 8000
    """Port on which the application serves HTTP. The kubelet's probes and the Service lead to it."""
    extra_ports: tuple[ExtraPort, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("name"))
    """Other ports that the application listens on."""
    env: EnvironmentVariables = ()
    """Environment variables of the application."""
    probes: Probes = Probes()
    """How the kubelet asks whether the application has started, is alive and is ready."""
    resources: Resources = Resources()
    """Compute resources of each pod."""
    database: Database | None = None
    """The application's database."""
    redis: RedisConnection | None = None
    """The application's Redis."""
    requires: Requirements = Requirements()
    """What must be true before a new pod template is rolled out. Until then the old pods keep serving."""
    api_key: ApiKey | None = None
    """The key that callers of the application send. Absent: the application gets none."""
    service: Service = Service()
    """How the application is reached."""
    service_account_name: str | None = Field(default=None, min_length=1, max_length=253)
    """An existing ServiceAccount for the pods. Default: one of the AppDeployment's name is made, without any rights."""
    rollout: Rollout = Rollout()
    """How new pods replace old ones."""
    drain: Drain = Drain()
    """How a pod goes."""
    disruption_budget: DisruptionBudget = DisruptionBudget()
    """How many pods a node's drain may take at once."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may connect to the pods, and where they may connect to."""
    spread: Spread = Spread()
    """How the pods are kept apart."""
    monitoring: Monitoring = Monitoring()
    """How Prometheus finds the application's metrics."""
    pod_template: PodTemplateOverlay | None = None
    """A strategic-merge patch of the pod template, for what the spec does not name."""

    @model_validator(mode="after")
    def _sqlite_has_one_replica(self) -> Self:
        if self.database is not None and self.database.sqlite is not None and self.replicas > 1:
            raise ValueError(SQLITE_REPLICAS)
        return self

    @model_validator(mode="after")
    def _ports_are_distinct(self) -> Self:
        if any(port.name == MAIN_PORT_NAME for port in self.extra_ports):
            raise ValueError(EXTRA_PORT_NAME)
        taken = {("TCP", self.port), ("TCP", self.service.port)}
        for port in self.extra_ports:
            if (port.protocol, port.port) in taken:
                raise ValueError(EXTRA_PORT_NUMBER)
            taken.add((port.protocol, port.port))
        return self

    @model_validator(mode="after")
    def _variables_are_distinct(self) -> Self:
        ours = self.set_variables()
        if len(set(ours)) != len(ours):
            raise ValueError(ONE_VARIABLE_EACH)
        if any(variable.name in ours for variable in self.env):
            raise ValueError(RESERVED_VARIABLE)
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for field, names in (
            ("spec.env", [variable.name for variable in self.env]),
            ("spec.extraPorts", [port.name for port in self.extra_ports]),
            ("spec.imagePullSecrets", [secret.name for secret in self.image_pull_secrets]),
            ("spec.requires.migrations", [migration.name for migration in self.requires.migrations]),
            ("spec.requires.rateLimitPolicies", [policy.name for policy in self.requires.rate_limit_policies]),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{field} must name each entry once: {', '.join(repeated)} is there twice")
        return self

    def set_variables(self) -> tuple[str, ...]:
        """Return the names of the environment variables that the spec sets by itself, beside spec.env."""
        names = []
        if self.database is not None:
            names.append(self.database.variable)
        if self.redis is not None:
            names.append(self.redis.variable)
        if self.api_key is not None:
            names += [self.api_key.variable, self.api_key.previous_variable]
        return tuple(names)


CheckStatus = Literal["Pass", "Fail", "Unknown", "NotApplicable"]


class ReadinessCheck(ResourceModel):
    """One line of the production-readiness scorecard."""

    name: Literal["Database", "RateLimits", "Health", "Security", "Deployment", "Monitoring", "Testing"]
    """What was looked at."""
    status: CheckStatus
    """Pass and Fail: shown by the live system. Unknown: the operator cannot see it. NotApplicable: not declared."""
    reason: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")
    """The result as one stable CamelCase word."""
    message: str = Field(max_length=4096)
    """What was seen, and where; for a Fail also what to do."""


class Holder(ResourceModel):
    """A requirement that holds the rollout."""

    kind: Literal["MigrationJob", "RateLimitPolicy"]
    """Kind of the requirement."""
    name: str = Field(max_length=253)
    """Name of the requirement, in the same namespace."""
    reason: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")
    """Why it holds, as one stable CamelCase word."""
    message: str = Field(max_length=4096)
    """What is missing."""


class ApiKeyStatus(ResourceModel):
    """Where the API key is, and how far its rotation is. Never the key."""

    secret_name: str = Field(max_length=253)
    """Secret that callers read the key from."""
    key: str = Field(max_length=253)
    """Key in the Secret's data."""
    phase: Literal["Current", "Distributing", "Overlapping", "External"]
    """Current: one key. Distributing: pods are learning a new key, callers still read the old one. Overlapping:
    callers read the new key, the old one still works. External: the key is yours."""
    key_id: str | None = Field(default=None, max_length=63)
    """Random name of the key that callers read; it says nothing about the key itself."""
    issued_at: Instant | None = None
    """When the key that callers read was generated."""
    previous_valid_until: Instant | None = None
    """When the previous key ends, during an overlap."""


class AppDeploymentStatus(StatusModel):
    """The application as it runs."""

    replicas: int = Field(default=0, ge=0, json_schema_extra={"format": "int32"})
    """Pods that exist."""
    ready_replicas: int = Field(default=0, ge=0, json_schema_extra={"format": "int32"})
    """Pods whose readiness probe says yes."""
    updated_replicas: int = Field(default=0, ge=0, json_schema_extra={"format": "int32"})
    """Pods of the newest released template."""
    available_replicas: int = Field(default=0, ge=0, json_schema_extra={"format": "int32"})
    """Pods that have been ready for spec.rollout.minReady."""
    selector: str | None = Field(default=None, max_length=1024)
    """Label selector of the pods, as text, for a HorizontalPodAutoscaler."""
    image: str | None = Field(default=None, max_length=1024)
    """Image of the released pod template: while a rollout is held, not the one of the spec."""
    url: str | None = Field(default=None, max_length=1024)
    """Address of the application within the cluster."""
    score: int | None = Field(default=None, ge=0, le=100)
    """Production readiness: per cent of the applicable checks that the live system passes."""
    checks: tuple[ReadinessCheck, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("name"))
    """The production-readiness scorecard."""
    held_by: tuple[Holder, ...] = Field(default=(), max_length=64, json_schema_extra=list_map("kind", "name"))
    """What holds the rollout. Empty: nothing."""
    api_key: ApiKeyStatus | None = None
    """Where the API key is."""


AppDeployment = Resource[AppDeploymentSpec, AppDeploymentStatus]

KIND = Kind(
    kind="AppDeployment",
    plural="appdeployments",
    singular="appdeployment",
    short_names=("appdep",),
    spec=AppDeploymentSpec,
    status=AppDeploymentStatus,
    description=(
        "An application: its image, probes, database and Redis, and what must be true before it rolls out. "
        "Conditions: Ready, Available (pods serve), Released (the pod template of the spec may run); "
        "Reconciling and Stalled while they are true."
    ),
    columns=(
        PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether all is as declared"),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason', "Why, in one word"),
        PrinterColumn("Desired", ".spec.replicas", "Pods wanted", type="integer"),
        PrinterColumn("Available", ".status.availableReplicas", "Pods that serve", type="integer"),
        PrinterColumn("Score", ".status.score", "Production readiness, per cent", type="integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "Time since it was created", type="date"),
        PrinterColumn("URL", ".status.url", "Address within the cluster", priority=1),
        PrinterColumn("Image", ".status.image", "Image of the released pod template", priority=1),
        PrinterColumn(
            "Message", '.status.conditions[?(@.type=="Ready")].message', "What a person should know", priority=1
        ),
    ),
    validations=(cel("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')", DNS_NAME),),
    scale=ScaleSubresource(
        spec_replicas_path=".spec.replicas",
        status_replicas_path=".status.replicas",
        label_selector_path=".status.selector",
    ),
)
