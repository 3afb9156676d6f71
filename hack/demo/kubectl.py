"""kubectl, as a person would use it: every read and write of the demo goes through the program itself."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from demo.steps import DemoError

Object = dict[str, Any]


class Kubectl:
    """Runs kubectl against one cluster."""

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        """Take the program and the kubeconfig it shall use."""
        self.program = program
        self.kubeconfig = kubeconfig

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return what it prints.

        Raises DemoError with kubectl's own words where it fails or takes longer than `timeout` seconds.
        """
        command = [str(self.program), "--kubeconfig", str(self.kubeconfig), *arguments]
        try:
            finished = subprocess.run(
                command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise DemoError(f"kubectl {' '.join(arguments[:4])} did not answer within {timeout:.0f} s") from None
        if finished.returncode != 0:
            raise DemoError(f"kubectl {' '.join(arguments[:4])} failed: {finished.stderr.strip()}")
        return finished.stdout

    def apply_folder(self, folder: Path) -> str:
        """Apply a kustomization by server-side apply."""
        return self.run("apply", "--server-side", "-k", str(folder))

    def apply(self, *manifests: Mapping[str, Any]) -> str:
        """Apply objects by server-side apply; they go through standard input, so no secret is an argument."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self.run("apply", "--server-side", "-f", "-", stdin=json.dumps(items))

    def patch(self, kind: str, name: str, patch: Mapping[str, Any], *, namespace: str) -> str:
        """Apply a merge patch to an object."""
        return self.run("patch", kind, name, "--namespace", namespace, "--type=merge", "--patch", json.dumps(patch))

    def get(self, kind: str, name: str, *, namespace: str) -> Object | None:
        """Return an object, or None where there is none."""
        text = self.run("get", kind, name, "--namespace", namespace, "--ignore-not-found", "--output", "json")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, *, namespace: str, selector: str = "") -> list[Object]:
        """Return the objects of a kind in a namespace."""
        options = ["--selector", selector] if selector else []
        text = self.run("get", kind, "--namespace", namespace, "--output", "json", *options)
        items: list[Object] = json.loads(text)["items"]
        return items

    def exec(self, target: str, *command: str, namespace: str, stdin: str | None = None) -> str:
        """Run a command in a pod and return what it prints."""
        options = ["--stdin"] if stdin is not None else []
        return self.run("exec", *options, target, "--namespace", namespace, "--", *command, stdin=stdin)

    def wait_for(
        self, kind: str, name: str, *, namespace: str, until: Callable[[Object], bool], timeout: float, what: str
    ) -> Object:
        """Return the object once `until` says so.

        Raises DemoError, naming `what`, after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.get(kind, name, namespace=namespace)
            if found is not None and until(found):
                return found
            time.sleep(1)
        raise DemoError(f"{what} did not happen within {timeout:.0f} s ({kind}/{name} in {namespace})")


def condition(resource: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    """Return a condition of the resource, or an empty one."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == type_), {})


def is_current(resource: Mapping[str, Any], type_: str) -> bool:
    """Whether the condition is True and speaks of the present spec."""
    generation = resource["metadata"]["generation"]
    return condition(resource, type_).get("status") == "True" and (
        resource.get("status", {}).get("observedGeneration") == generation
    )
