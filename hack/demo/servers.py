"""PostgreSQL and Redis in the cluster, with passwords made for this cluster and kept nowhere else."""

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.kubectl import Kubectl

MANIFESTS = Path(__file__).parent / "manifests"
DATABASE = "birthday"
USER = "birthday"


def ensure_secrets(kubectl: Kubectl, *, namespace: str) -> None:
    """Create the Secrets of both servers and of their users, unless they are there.

    What is there stays: the servers that run know only their first password.
    """
    if kubectl.get("secret", "postgres-credentials", namespace=namespace) is None:
        password = secrets.token_urlsafe(24)
        credentials = {"POSTGRES_USER": USER, "POSTGRES_PASSWORD": password, "POSTGRES_DB": DATABASE}
        url = f"postgresql+asyncpg://{USER}:{password}@postgres.{namespace}.svc:5432/{DATABASE}"
        kubectl.apply(
            secret("postgres-credentials", credentials, namespace=namespace),
            secret("birthday-database", {"url": url}, namespace=namespace),
        )
    if kubectl.get("secret", "redis-config", namespace=namespace) is None:
        password = secrets.token_urlsafe(24)
        configuration = f"requirepass {password}\nappendonly yes\ndir /data\n"
        url = f"redis://:{password}@redis.{namespace}.svc:6379/0"
        kubectl.apply(
            secret("redis-config", {"redis.conf": configuration}, namespace=namespace),
            secret("birthday-redis", {"url": url}, namespace=namespace),
        )


def start(kubectl: Kubectl, *, namespace: str) -> None:
    """Run both servers and wait until they answer."""
    kubectl.apply_folder(MANIFESTS)
    for name in ("postgres", "redis"):
        kubectl.wait_for(
            "statefulset",
            name,
            namespace=namespace,
            until=lambda found: found.get("status", {}).get("readyReplicas", 0) == 1,
            timeout=180,
            what=f"{name} becoming ready",
        )


def secret(name: str, values: Mapping[str, str], *, namespace: str) -> dict[str, Any]:
    """Return a Secret with these values."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}


def query(kubectl: Kubectl, sql: str, *, namespace: str) -> list[list[str]]:
    """Run SQL in the database, in the server's own pod, and return its rows as text."""
    script = 'PGPASSWORD="$POSTGRES_PASSWORD" psql --host 127.0.0.1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB"'
    options = "--no-psqlrc --tuples-only --no-align --field-separator '\t' --set ON_ERROR_STOP=1 --file -"
    printed = kubectl.exec("postgres-0", "sh", "-c", f"{script} {options}", namespace=namespace, stdin=sql)
    return [line.split("\t") for line in printed.splitlines() if line]
