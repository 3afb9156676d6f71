"""The Kubernetes kinds the operator touches: where each lives in the API, and whether it is watched."""

from dataclasses import dataclass

from kubernetes.aio.dynamic import Resource as ApiResource

from shipkeeper.resources.base import GROUP, VERSION
from shipkeeper.resources.kinds import Kind


@dataclass(frozen=True, kw_only=True)
class ApiKind:
    """One kind of object at one API version. All of them are namespaced."""

    group: str
    version: str
    kind: str
    plural: str

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def collection(self) -> str:
        """The URL path of all its objects in the cluster."""
        return f"/{'apis' if self.group else 'api'}/{self.api_version}/{self.plural}"

    def resource(self) -> ApiResource:
        """Return the form that the dynamic client wants, without asking the API server to describe itself."""
        return ApiResource(
            prefix="apis" if self.group else "api",
            group=self.group,
            api_version=self.version,
            kind=self.kind,
            name=self.plural,
            namespaced=True,
        )


CHILDREN = (
    ApiKind(group="apps", version="v1", kind="Deployment", plural="deployments"),
    ApiKind(group="", version="v1", kind="Service", plural="services"),
    ApiKind(group="batch", version="v1", kind="Job", plural="jobs"),
    ApiKind(group="", version="v1", kind="ConfigMap", plural="configmaps"),
    ApiKind(group="", version="v1", kind="ServiceAccount", plural="serviceaccounts"),
    ApiKind(group="", version="v1", kind="PersistentVolumeClaim", plural="persistentvolumeclaims"),
    ApiKind(group="rbac.authorization.k8s.io", version="v1", kind="Role", plural="roles"),
    ApiKind(group="rbac.authorization.k8s.io", version="v1", kind="RoleBinding", plural="rolebindings"),
    ApiKind(group="policy", version="v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets"),
    ApiKind(group="networking.k8s.io", version="v1", kind="NetworkPolicy", plural="networkpolicies"),
)
"""What resources own. Watched where the label `app.kubernetes.io/managed-by=shipkeeper` says they are ours."""

OPTIONAL_CHILDREN = (
    ApiKind(group="monitoring.coreos.com", version="v1", kind="ServiceMonitor", plural="servicemonitors"),
    ApiKind(group="monitoring.coreos.com", version="v1", kind="PrometheusRule", plural="prometheusrules"),
)
"""Children of kinds that a cluster may not know. Whether it does is asked once, when the process starts."""

POD = ApiKind(group="", version="v1", kind="Pod", plural="pods")
"""Watched like the children, but made by Deployments and Jobs, never by us."""

UNWATCHED = (
    ApiKind(group="", version="v1", kind="Secret", plural="secrets"),
    ApiKind(group="events.k8s.io", version="v1", kind="Event", plural="events"),
    ApiKind(group="coordination.k8s.io", version="v1", kind="Lease", plural="leases"),
)
"""Read or written by name only. No copy of a Secret stays in memory."""


def own_kind(kind: Kind) -> ApiKind:
    """Return where one of our own resources lives in the API."""
    return ApiKind(group=GROUP, version=VERSION, kind=kind.kind, plural=kind.plural)
