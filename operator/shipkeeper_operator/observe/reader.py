"""How an observer reads the cluster: a protocol, so that observers depend on reading and on nothing that writes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Object = Mapping[str, Any]


class ClusterReader(Protocol):
    """Reads of the API server. All but `secret` come from the watch cache: no request, no wait."""

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return the cached object of a watched kind (`Deployment`, `Job`, `MigrationJob`, ...), trimmed, or None."""

    def children(self, kind: str, owner_uid: str) -> Sequence[Object]:
        """Return the cached objects of that kind whose ownerReferences name the uid."""

    def pods(self, namespace: str, labels: Mapping[str, str]) -> Sequence[Object]:
        """Return the cached pods of the namespace that carry all these labels."""

    def serves(self, kind: str) -> bool:
        """Whether the cluster knows the kind, for one of those that it may not know."""

    async def secret(self, namespace: str, name: str) -> Object | None:
        """Read a Secret from the API server (never cached: no copy of credentials stays in memory), or None."""
