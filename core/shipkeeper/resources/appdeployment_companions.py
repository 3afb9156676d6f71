"""The parts of an AppDeployment's spec that describe what stands beside its pods.

Database, Redis, what must be true before a rollout, API key, Service, disruption budget, network policy, monitoring.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .appdeployment_pod import (
    Annotations,
    CountOrPercentage,
    Labels,
    PortNumber,
    PositiveSeconds,
    VariableName,
    WholeSeconds,
)
from .base import (
    Duration,
    LocalReference,
    ResourceModel,
    SecretKeyReference,
    cel,
    list_map,
    parse_duration,
    with_cel,
)

ONE_VOLUME_SOURCE = (
    "spec.database.sqlite needs exactly one of size (a new volume claim) and claimName (an existing one)"
)
SIZE_MAY_GROW = "spec.database.sqlite.size may grow but not shrink: a volume claim cannot be made smaller"
STORAGE_CLASS_STAYS = (
    "spec.database.sqlite.storageClassName cannot be changed: it is a property of the claim that exists; "
    "copy the data to a new claim and name that in claimName"
)


# A string, not int-or-string: the API server cannot bound the cost of a rule over a value without maxLength.
VolumeSize = Annotated[
    str, Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")
]


class SqliteVolume(ResourceModel):
    """A SQLite file on a persistent volume. It has one writer, so the application has one replica."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("has(self.size) != has(self.claimName)", ONE_VOLUME_SOURCE),
            cel(
                "!has(self.size) || !has(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",
                SIZE_MAY_GROW,
            ),
            cel(
                "!has(self.size) || !has(oldSelf.size) || "
                "(has(self.storageClassName) == has(oldSelf.storageClassName) && "
                "(!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName))",
                STORAGE_CLASS_STAYS,
            ),
        )
    )

    size: VolumeSize | None = None
    """Size of a volume claim `<name>-data` to create. It outlives the AppDeployment: data is never deleted with it."""
    claim_name: str | None = Field(default=None, min_length=1, max_length=253)
    """Name of an existing volume claim in the same namespace."""
    storage_class_name: str | None = Field(default=None, max_length=253)
    """Storage class of the claim to create. Default: the cluster's."""
    mount_path: str = Field(default="/data", min_length=2, max_length=512, pattern=r"^/[^:]+$")
    """Folder in the container where the volume is mounted."""
    file_name: str = Field(default="app.db", min_length=1, max_length=253, pattern=r"^[^/]+$")
    """Name of the database file in that folder."""
    driver: str = Field(default="sqlite+aiosqlite", min_length=1, max_length=63, pattern=r"^[a-z0-9+]+$")
    """Scheme of the URL that the application gets, as SQLAlchemy names its drivers."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.size is None) == (self.claim_name is None):
            raise ValueError(ONE_VOLUME_SOURCE)
        return self


ONE_DATABASE = "spec.database needs exactly one of urlFrom (a server's URL in a Secret) and sqlite (a file on a volume)"


class Database(ResourceModel):
    """The application's database. Its URL reaches the pods as an environment variable and is never read by us."""

    model_config = ConfigDict(json_schema_extra=with_cel(cel("has(self.urlFrom) != has(self.sqlite)", ONE_DATABASE)))

    url_from: SecretKeyReference | None = None
    """Key of a Secret that holds the database's URL, for example postgresql+asyncpg://user:password@host/name."""
    sqlite: SqliteVolume | None = None
    """A SQLite file on a persistent volume, instead of a server."""
    variable: VariableName = "DATABASE_URL"
    """Environment variable in which the application expects the URL."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.url_from is None) == (self.sqlite is None):
            raise ValueError(ONE_DATABASE)
        return self


class RedisConnection(ResourceModel):
    """The application's Redis."""

    url_from: SecretKeyReference
    """Key of a Secret that holds the URL, for example redis://:password@host:6379/0."""
    variable: VariableName = "REDIS_URL"
    """Environment variable in which the application expects the URL."""


LocalReferences = Annotated[tuple[LocalReference, ...], Field(max_length=32, json_schema_extra=list_map("name"))]


class Requirements(ResourceModel):
    """What must be true before a new pod template is rolled out. Until then the old pods keep serving."""

    migrations: LocalReferences = ()
    """MigrationJobs of the same namespace that must be complete and verified."""
    rate_limit_policies: LocalReferences = ()
    """RateLimitPolicies of the same namespace that must be enforced."""


class ApiKeyRotation(ResourceModel):
    """When the generated key is replaced, and how long the old one still works."""

    every: Duration | None = None
    """Replace the key when it is this old, for example 90d. Default: only when revision changes."""
    overlap: Duration = "24h"
    """How long the previous key is still accepted after callers can read the new one."""
    revision: str | None = Field(default=None, min_length=1, max_length=63)
    """Any text; a change of it replaces the key now."""


DISTINCT_KEY_VARIABLES = "spec.apiKey.variable and spec.apiKey.previousVariable must be two different names"
ROTATION_OF_GENERATED_KEY = (
    "spec.apiKey.rotation goes with a generated key only: remove it, or remove spec.apiKey.keyFrom"
)


class ApiKey(ResourceModel):
    """The key that callers send. Generated with 256 bits of randomness unless keyFrom names one.

    A generated key is in the Secret `<name>-api-key` under `api-key`, which is what callers read. It is rotated
    without an interruption: the pods accept the new key besides the old one before callers see it, and the old one
    until the overlap is over.
    """

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("self.variable != self.previousVariable", DISTINCT_KEY_VARIABLES),
            cel("!has(self.keyFrom) || !has(self.rotation)", ROTATION_OF_GENERATED_KEY),
        )
    )

    key_from: SecretKeyReference | None = None
    """Key of an existing Secret to use instead of a generated key."""
    variable: VariableName = "API_KEY"
    """Environment variable in which the application expects the key."""
    previous_variable: VariableName = "API_KEY_PREVIOUS"
    """Environment variable of a second key that the application must accept too; absent outside a rotation."""
    rotation: ApiKeyRotation | None = None
    """When the generated key is replaced. Default: never."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.variable == self.previous_variable:
            raise ValueError(DISTINCT_KEY_VARIABLES)
        if self.key_from is not None and self.rotation is not None:
            raise ValueError(ROTATION_OF_GENERATED_KEY)
        return self


class Service(ResourceModel):
    """How the application is reached."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """From where: within the cluster, from the nodes' addresses, or through a load balancer."""
    port: PortNumber = 80
    """Port of the Service that leads to spec.port."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations of the Service, for example those that a cloud's load balancer reads."""


SURGE_ABOVE_ZERO = "spec.rollout.maxSurge must be above 0, because no old pod goes before a new one is ready"
READY_BEFORE_DEADLINE = (
    "spec.rollout.minReady must be shorter than spec.rollout.progressDeadline: a pod must be able to count in time"
)


class Rollout(ResourceModel):
    """How new pods replace old ones. No old pod goes before a new one is ready (with a SQLite volume: after)."""

    model_config = ConfigDict(
        json_schema_extra=with_cel(
            cel("!(self.maxSurge in [dyn(0), dyn('0'), dyn('0%'), dyn('00%')])", SURGE_ABOVE_ZERO),
            cel("duration(self.minReady) < duration(self.progressDeadline)", READY_BEFORE_DEADLINE),
        )
    )

    max_surge: CountOrPercentage = 1
    """How many pods more than the replicas may exist during a rollout."""
    min_ready: WholeSeconds = "0s"
    """A new pod must have been ready this long before it counts."""
    progress_deadline: PositiveSeconds = "10m"
    """A rollout without progress for this long is reported as ProgressDeadlineExceeded."""

    @model_validator(mode="after")
    def _can_progress(self) -> Self:
        if int(str(self.max_surge).rstrip("%")) == 0:
            raise ValueError(SURGE_ABOVE_ZERO)
        if parse_duration(self.min_ready) >= parse_duration(self.progress_deadline):
            raise ValueError(READY_BEFORE_DEADLINE)
        return self


class DisruptionBudget(ResourceModel):
    """How many pods a node's drain may take at once."""

    mode: Literal["Auto", "Disabled"] = "Auto"
    """Auto: a PodDisruptionBudget while there are two replicas or more (with one it would block every drain)."""
    max_unavailable: CountOrPercentage = 1
    """Pods that may be missing at the same time."""


class NetworkPolicy(ResourceModel):
    """Who may connect to the pods, and where they may connect to. Needs a network plugin that enforces it."""

    mode: Literal["Auto", "Disabled"] = "Auto"
    """Auto: only the declared ports, only from the namespaces below. Disabled: no NetworkPolicy."""
    allowed_namespaces: tuple[Annotated[str, Field(min_length=1, max_length=63)], ...] = Field(
        default=(), max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """Namespaces whose pods may connect, besides the application's own: the ingress controller's, the monitoring's."""
    egress: (
        Annotated[
            tuple[
                Annotated[
                    dict[str, Any],
                    Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
                ],
                ...,
            ],
            Field(max_length=64),
        ]
        | None
    ) = None
    """Rules of networking.k8s.io/v1 NetworkPolicyEgressRule; DNS is always allowed. Default: no limit."""


class Spread(ResourceModel):
    """How the pods are kept apart, so that one failure does not take all of them."""

    topology_keys: tuple[Annotated[str, Field(min_length=1, max_length=317)], ...] = Field(
        default=("kubernetes.io/hostname", "topology.kubernetes.io/zone"),
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    """Node labels over whose values the pods are spread evenly."""
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    """What to do with a pod that no node can take without unevenness."""


class Monitoring(ResourceModel):
    """How Prometheus finds the application's metrics."""

    mode: Literal["Auto", "Annotations", "Disabled"] = "Auto"
    """Auto: a ServiceMonitor and a PrometheusRule where the cluster knows those kinds, else scrape annotations."""
    path: str = Field(default="/metrics", min_length=1, max_length=1024, pattern=r"^/")
    """Path of the metrics on spec.port."""
    interval: PositiveSeconds = "30s"
    """Time between two scrapes, for a ServiceMonitor."""
    alerts: Literal["Enabled", "Disabled"] = "Enabled"
    """Whether a PrometheusRule with alerts about the application is made."""
    labels: Labels = Field(default_factory=dict)
    """Labels of the ServiceMonitor and the PrometheusRule, by which a Prometheus selects them."""
