"""The legacy rows, generated in the cluster by the application's own generator, which knows what becomes of them."""

import json
from dataclasses import dataclass
from typing import Any

from demo.cluster import APP_IMAGE
from demo.kubectl import Kubectl
from demo.steps import DemoError

ROWS = 50_000
JOB = "legacy-data"


@dataclass(frozen=True)
class Expected:
    """What an independent reading of the legacy rows says that the migration must do with them."""

    rows: int
    copied: int
    already: int
    rejected: int


def generate(kubectl: Kubectl, *, namespace: str, rows: int = ROWS) -> Expected:
    """Create the tables and the legacy rows, unless they are there, and return what must become of them."""
    if kubectl.get("job", JOB, namespace=namespace) is None:
        kubectl.apply(job(namespace=namespace, rows=rows))
    finished = kubectl.wait_for(
        "job", JOB, namespace=namespace, until=_has_ended, timeout=300, what="the generation of legacy rows"
    )
    printed = kubectl.run("logs", f"job/{JOB}", "--namespace", namespace)
    if not finished["status"].get("succeeded"):
        raise DemoError(f"the generation of legacy rows failed:\n{printed}")
    return Expected(**json.loads(printed.strip().splitlines()[-1]))


def _has_ended(found: dict[str, Any]) -> bool:
    return any(each["status"] == "True" for each in found.get("status", {}).get("conditions", []))


def job(*, namespace: str, rows: int) -> dict[str, Any]:
    """Return the Job that generates the rows."""
    container = {
        "name": "generator",
        "image": APP_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-m", "birthday_app.legacy_data", "--rows", str(rows)],
        "env": [{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "birthday-database", "key": "url"}}}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": JOB, "namespace": namespace},
        "spec": {"backoffLimit": 2, "template": {"spec": pod}},
    }
