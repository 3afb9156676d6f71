"""The provider `local`: a one-node cluster out of Go modules and Debian packages, in namespaces of its own."""

import contextlib
import hashlib
import ipaddress
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from localcluster import cgroups, debian, paths, processes, programs
from localcluster.api import ApiClient
from localcluster.controlplane import not_ready, wait_for_service_account
from localcluster.errors import LocalClusterError
from localcluster.hostnetwork import HostNetwork, free_network, upstream_resolvers
from localcluster.locks import exclusive
from localcluster.nodeconfig import NODE_NAME, NodeLayout, cgroup_name, system_objects
from localcluster.pause import pause_archive
from localcluster.progress import say, step
from localcluster.shell import run
from localcluster.subnets import Network
from localcluster.supervisor import SupervisorFiles, accepts_connections

API_SECONDS = 90.0
NODE_SECONDS = 90.0
REPAIR_SECONDS = 12.0
CRASH_LOOP_STARTS = 3
OK = "ok"
NODE_INIT = "localcluster.nodeinit"


class LocalProvider:
    """See the module. All state of the cluster lies in one folder of the user's state folder."""

    def __init__(self, cluster: str) -> None:
        self.name = cluster
        self.folder = paths.clusters_folder() / cluster
        self._files = SupervisorFiles(folder=self.folder)
        self._network_file = self.folder / "network.json"
        self._start_record = self.folder / "started-with"

    def create(self) -> None:
        """See Provider."""
        require_root()
        debian.ensure(debian.NODE_PACKAGES)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(paths.clusters_folder() / f"{self.name}.lock", f"working on the cluster {self.name}"):
            layout = self._layout()
            self._files.write(layout.components())
            changed = self._configuration() != self._started_with()
            # The kubeconfig is the last file of a start: without it, an earlier start was interrupted.
            finished = layout.control_plane.kubeconfig.exists()
            if self._runs() and finished and not changed and self._settles(layout):
                return
            if self._runs():
                say("  The node is " + ("configured anew." if changed else "not healthy. It is started again."))
            self._stop()
            self._start_or_begin_anew(layout)

    def status(self) -> dict[str, str]:
        """See Provider."""
        if not self._runs() or not self._network_file.exists():
            return {"node": "does not run"}
        return self._problems(self._layout_without_programs())

    def kubeconfig(self) -> Path:
        """See Provider."""
        path = self.folder / "kubeconfig"
        if not path.exists():
            raise LocalClusterError(f"There is no cluster {self.name}. Make it: make cluster")
        return path

    def kubectl(self) -> Path:
        """See Provider."""
        return programs.ensure(["kubectl"])["kubectl"]

    def load_image(self, archive: Path) -> None:
        """See Provider."""
        record = self.folder / "images" / archive.name
        if record.exists():
            return
        layout = self._layout_without_programs()
        run("ctr", "--address", layout.containerd_socket, "--namespace", "k8s.io", "images", "import", archive)
        record.parent.mkdir(exist_ok=True)
        record.touch()

    def delete(self) -> None:
        """See Provider."""
        with exclusive(paths.clusters_folder() / f"{self.name}.lock", f"working on the cluster {self.name}"):
            if self._runs() or self.folder.exists():
                require_root()
                self._stop()
            if self._network_file.exists():
                self._host_network(self._network()).detach(last=not self._other_clusters())
            if self.folder.exists():
                shutil.rmtree(self.folder)
        (paths.clusters_folder() / f"{self.name}.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            paths.clusters_folder().rmdir()

    def component_pid(self, component: str) -> int:
        """The process id on the machine of one of the node's programs.

        Raises LocalClusterError where it does not run now.
        """
        inner = self._supervised().get(component, {}).get("pid")
        for pid in [child for init in self._init_pids() for child in processes.children(init)]:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                if ids[-1] == str(inner):
                    return pid
        raise LocalClusterError(f"{component} does not run.")

    def _runs(self) -> bool:
        return bool(processes.find(NODE_INIT, self.folder))

    def _init_pids(self) -> list[int]:
        """Process 1 of the node, by its number on the machine; more than one only where something went wrong."""
        own = processes.namespace(os.getpid(), "pid")
        found = processes.find(NODE_INIT, self.folder)
        return [pid for pid in found if processes.namespace(pid, "pid") not in (own, None)]

    def _other_clusters(self) -> list[Path]:
        return [path for path in paths.clusters_folder().glob("*/network.json") if path != self._network_file]

    def _network(self) -> Network:
        """The addresses of this cluster; chosen once, kept for its life."""
        if not self._network_file.exists():
            reserved = [ipaddress.IPv4Network(json.loads(path.read_text())["block"]) for path in self._other_clusters()]
            paths.write_atomically(self._network_file, json.dumps({"block": str(free_network(reserved).block)}))
        return Network(ipaddress.IPv4Network(json.loads(self._network_file.read_text())["block"]))

    def _host_network(self, network: Network) -> HostNetwork:
        return HostNetwork(cluster=self.name, network=network, folder=self.folder)

    def _layout(self) -> NodeLayout:
        found = programs.ensure((*programs.CONTROL_PLANE, *programs.NODE))
        resolvers = tuple(upstream_resolvers())
        return NodeLayout(
            folder=self.folder, name=self.name, network=self._network(), programs=found, resolvers=resolvers
        )

    def _layout_without_programs(self) -> NodeLayout:
        return NodeLayout(folder=self.folder, name=self.name, network=self._network(), programs={}, resolvers=())

    def _configuration(self) -> str:
        """A hash of everything the node's programs read at their start."""
        digest = hashlib.sha256(self._files.specification.read_bytes())
        for path in sorted(path for path in (self.folder / "config").rglob("*") if path.is_file()):
            digest.update(f"{path.name} ".encode() + path.read_bytes())
        return digest.hexdigest()

    def _started_with(self) -> str:
        """The hash of what the node that runs now was started with."""
        return self._start_record.read_text() if self._start_record.exists() else ""

    def _start_or_begin_anew(self, layout: NodeLayout) -> None:
        """Start the node; without its data where these cannot be read, for the store never waits for the disk."""
        had_data = layout.control_plane.data.exists()
        try:
            self._start(layout)
        except LocalClusterError:
            if not had_data or not self._fails_again_and_again("etcd"):
                raise
            say("  The cluster's data cannot be read, as after a power cut. It begins anew, without its objects.")
            self._stop()
            shutil.rmtree(layout.control_plane.data)
            self._start(layout)

    def _fails_again_and_again(self, component: str) -> bool:
        started: int = self._supervised().get(component, {}).get("starts", 0)
        return started >= CRASH_LOOP_STARTS

    def _supervised(self) -> dict[str, dict[str, int]]:
        """What the supervisor says of its components: process id and count of starts."""
        try:
            found: dict[str, dict[str, int]] = json.loads(self._files.status.read_text())
        except OSError:
            return {}
        return found

    def _start(self, layout: NodeLayout) -> None:
        layout.control_plane.kubeconfig.unlink(missing_ok=True)
        paths.write_atomically(self._start_record, self._configuration())
        with step(f"starting the cluster {self.name}"):
            cgroups.create(cgroup_name(self.name))
            layout.containerd_socket.unlink(missing_ok=True)
            namespaces = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child")
            arguments = (self.folder, paths.cache_folder(), layout.network.node, layout.network.host)
            pid = processes.spawn(
                *("unshare", *namespaces, *processes.python("-m", NODE_INIT, *arguments)),
                log=self._files.logs / "node.log",
            )
            wait_for_namespace(pid)
            self._host_network(layout.network).attach(pid)
            self._finish(layout)

    def _finish(self, layout: NodeLayout) -> None:
        client = layout.control_plane.client()
        if not client.wait_ready(API_SECONDS, unless=lambda: self._fails_again_and_again("etcd")):
            raise not_ready(self._files.logs)
        for path, document in system_objects(layout.network):
            client.apply(path, document)
        wait_for_service_account(client)
        self._load_pause_image(layout)
        deadline = time.monotonic() + NODE_SECONDS
        while problems := {part: text for part, text in self._problems(layout).items() if text != OK}:
            if time.monotonic() > deadline:
                raise LocalClusterError(f"The cluster does not become healthy: {problems}. Logs: {self._files.logs}")
            time.sleep(0.1)
        layout.control_plane.write_kubeconfig_for(layout.control_plane.kubeconfig, layout.control_plane.administrator())

    def _load_pause_image(self, layout: NodeLayout) -> None:
        deadline = time.monotonic() + NODE_SECONDS
        while not accepts_connections(f"unix:{layout.containerd_socket}") and time.monotonic() < deadline:
            time.sleep(0.05)
        self.load_image(pause_archive())

    def _stop(self) -> None:
        """End all processes of the node. Its files stay."""
        # Process 1 first: when its parent has waited for it, all of its namespace is gone.
        for pid in (*self._init_pids(), *processes.find(NODE_INIT, self.folder)):
            processes.end(pid, signal.SIGKILL)
        self._files.status.unlink(missing_ok=True)
        cgroups.remove(cgroup_name(self.name))

    def _settles(self, layout: NodeLayout) -> bool:
        """Whether all is well, now or after the supervisor had a moment to mend it."""
        deadline = time.monotonic() + REPAIR_SECONDS
        while any(text != OK for text in self._problems(layout).values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _problems(self, layout: NodeLayout) -> dict[str, str]:
        client = layout.control_plane.client()
        parts = {"api server": OK if client.is_ready() else "does not answer"}
        running = self._supervised()
        for component in self._files.components():
            alive = running.get(component.name, {}).get("pid", 0) != 0
            parts[component.name] = OK if alive else f"does not run, see {self._files.logs / component.name}.log"
        dns = accepts_connections(f"tcp:{layout.network.node}:53")
        parts["dns"] = OK if dns else "does not answer"
        if parts["kubelet"] == OK and parts["api server"] == OK:
            parts["kubelet"] = node_problem(client)
        return parts


def require_root() -> None:
    """Raise LocalClusterError for everybody else."""
    if os.geteuid() != 0:
        raise LocalClusterError("The local cluster makes namespaces and links: run this as root, or use CLUSTER=kind.")


def node_problem(client: ApiClient) -> str:
    """`ok`, or why the node is not ready."""
    node: dict[str, Any] | None = client.get(f"/api/v1/nodes/{NODE_NAME}")
    if node is None:
        return "the node is not registered"
    ready = [each for each in node["status"].get("conditions", []) if each["type"] == "Ready"]
    if not ready or ready[0]["status"] != "True":
        return f"the node is not ready: {ready[0]['message'] if ready else 'no condition yet'}"
    return OK


def wait_for_namespace(pid: int) -> None:
    """Wait until a process has left this process's network namespace.

    Raises LocalClusterError when it does not, or ends.
    """
    own = processes.namespace(os.getpid(), "net")
    deadline = time.monotonic() + REPAIR_SECONDS
    while time.monotonic() < deadline and processes.is_running(pid):
        if processes.namespace(pid, "net") not in (own, None):
            return
        time.sleep(0.02)
    raise LocalClusterError(
        "The node's namespaces could not be made; are you root outside of an unprivileged container?"
    )
