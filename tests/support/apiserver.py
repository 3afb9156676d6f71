"""A real API server for tests: etcd, kube-apiserver and the controller manager, no node, shared by a test session."""

import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.kubectl import Kubectl
from localcluster import programs
from localcluster.controlplane import ControlPlane
from localcluster.supervisor import SupervisorFiles

REPOSITORY = Path(__file__).parents[2]


class ApiServer:
    """A running control plane with our CRDs, and kubectl to talk to it."""

    def __init__(self, control_plane: ControlPlane) -> None:
        """Take a control plane that runs."""
        self.control_plane = control_plane
        self.kubeconfig = control_plane.kubeconfig
        self.kubectl = Kubectl(programs.ensure(["kubectl"])["kubectl"], self.kubeconfig)

    def install_crds(self) -> None:
        """Install the CRDs from crds/ and wait until the API server serves them."""
        self.kubectl.apply_folder(REPOSITORY / "crds")
        self.kubectl.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")

    def kill_api_server(self) -> None:
        """End the API server without warning; its supervisor starts it again on the same port within seconds."""
        status = json.loads(SupervisorFiles(folder=self.control_plane.folder).status.read_text())
        os.kill(status["kube-apiserver"]["pid"], signal.SIGKILL)

    def create_namespace(self, prefix: str = "test") -> str:
        """Create a namespace of a new name and return the name."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.kubectl.run("create", "namespace", name)
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for the namespace's deletion, without waiting."""
        self.kubectl.run("delete", "namespace", name, "--wait=false")


def eventually(check: Callable[[], Any], *, timeout: float = 30, what: str = "the expected state") -> Any:
    """Call `check` until it returns something true, and return that; an assertion it fails counts as not yet."""
    deadline = time.monotonic() + timeout
    while True:
        last: object = None
        try:
            if last := check():
                return last
        except AssertionError as failure:
            last = failure
        if time.monotonic() > deadline:
            shown = last if isinstance(last, AssertionError) else json.dumps(last, default=str)
            raise AssertionError(f"{what} did not come within {timeout:.0f} s; last: {shown}")
        time.sleep(0.1)
