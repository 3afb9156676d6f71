"""A control plane: etcd, the API server and the controller manager.

With a node it is a cluster; alone it serves most tests:

    with ControlPlane(folder) as kubeconfig:
        ...

Several may run side by side: each takes free ports, and all it writes lies in its folder.
"""

import json
import random
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from localcluster import processes, programs
from localcluster.api import ApiClient
from localcluster.errors import LocalClusterError
from localcluster.kubeconfig import write_kubeconfig
from localcluster.locks import exclusive
from localcluster.paths import last_lines, write_atomically
from localcluster.pki import Authority, KeyPair
from localcluster.supervisor import Component, SupervisorFiles

SUPERVISOR = "localcluster.supervisor"
LOOPBACK = "127.0.0.1"
START_SECONDS = 90.0
API_SERVER_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The TCP ports of a control plane."""

    api: int
    etcd: int
    etcd_peer: int
    controller_manager: int


@dataclass(frozen=True, kw_only=True)
class ControlPlaneLayout:
    """Where a control plane listens and keeps its files. `address` is the API server's; the rest stays on loopback."""

    folder: Path
    name: str
    address: str
    ports: Ports
    service_cidr: str
    api_service_address: str

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://{self.address}:{self.ports.api}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "kubeconfig"

    @property
    def data(self) -> Path:
        """The store's files."""
        return self.folder / "etcd"

    def authority(self) -> Authority:
        """The certificate authority."""
        return Authority(self.folder / "pki")

    def administrator(self) -> KeyPair:
        """The client certificate of the kubeconfig."""
        return self.authority().client("admin", user="kubernetes-admin", group="system:masters")

    def client(self) -> ApiClient:
        """A client with the administrator's rights."""
        authority = self.authority().certificate
        return ApiClient(address=self.address, port=self.ports.api, authority=authority, client=self.administrator())

    def write_kubeconfig_for(self, path: Path, pair: KeyPair) -> Path:
        """Write a kubeconfig for one of the components; returns its path."""
        write_kubeconfig(path, name=self.name, server=self.server, authority=self.authority().certificate, client=pair)
        return path


def etcd(layout: ControlPlaneLayout, program: Path) -> Component:
    """The store. Without fsync: the data of such a cluster need not survive a power cut, and disks are slow."""
    client, peer = (f"http://{LOOPBACK}:{port}" for port in (layout.ports.etcd, layout.ports.etcd_peer))
    return Component(
        name="etcd",
        command=(
            *(str(program), "--name=default", f"--data-dir={layout.data}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"),
            *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}", "--log-level=warn"),
        ),
    )


def api_server(layout: ControlPlaneLayout, program: Path, *flags: str) -> Component:
    """The API server with RBAC."""
    authority = layout.authority()
    serving = authority.server(
        "kube-apiserver",
        user="kube-apiserver",
        addresses=tuple(dict.fromkeys((layout.address, LOOPBACK, layout.api_service_address))),
        names=API_SERVER_NAMES,
    )
    signing_key = authority.service_account_key()
    issuer = "https://kubernetes.default.svc.cluster.local"
    return Component(
        name="kube-apiserver",
        needs=(f"tcp:{LOOPBACK}:{layout.ports.etcd}",),
        command=(
            *(str(program), f"--etcd-servers=http://{LOOPBACK}:{layout.ports.etcd}"),
            *(f"--bind-address={layout.address}", f"--secure-port={layout.ports.api}"),
            *(f"--advertise-address={layout.address}", f"--service-cluster-ip-range={layout.service_cidr}"),
            *(f"--tls-cert-file={serving.certificate}", f"--tls-private-key-file={serving.key}"),
            *(f"--client-ca-file={authority.certificate}", f"--service-account-issuer={issuer}"),
            *(f"--service-account-signing-key-file={signing_key}", f"--service-account-key-file={signing_key}"),
            *(f"--cert-dir={layout.folder / 'pki'}", "--allow-privileged=true", "--profiling=false"),
            *flags,
        ),
    )


def controller_manager(layout: ControlPlaneLayout, program: Path, *flags: str) -> Component:
    """The controllers of Kubernetes: garbage collection, service accounts, Deployments, Jobs and the rest."""
    authority = layout.authority()
    pair = authority.client("kube-controller-manager", user="system:kube-controller-manager")
    kubeconfig = layout.write_kubeconfig_for(layout.folder / "pki" / "kube-controller-manager.kubeconfig", pair)
    return Component(
        name="kube-controller-manager",
        needs=(f"tcp:{layout.address}:{layout.ports.api}",),
        command=(
            *(str(program), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--use-service-account-credentials"),
            *(f"--bind-address={LOOPBACK}", f"--secure-port={layout.ports.controller_manager}"),
            *(f"--root-ca-file={authority.certificate}", f"--cert-dir={layout.folder / 'pki'}", "--profiling=false"),
            # The default of 20 requests a second makes a start some seconds slower.
            *("--kube-api-qps=100", "--kube-api-burst=200"),
            f"--service-account-private-key-file={authority.service_account_key()}",
            *flags,
        ),
    )


class ControlPlane:
    """etcd, an API server and, where it is built, the controller manager, on free ports of the loopback address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._files = SupervisorFiles(folder=self.folder)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; the file exists after `start`."""
        return self.folder / "kubeconfig"

    def is_running(self) -> bool:
        """Whether its supervisor lives."""
        return bool(processes.find(SUPERVISOR, self.folder))

    def start(self) -> Path:
        """Start what does not run and return the kubeconfig's path when the API server is ready.

        Raises LocalClusterError where programs are missing or the API server does not become ready.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(self.folder / "start.lock", "starting a control plane"):
            if self.is_running() and self._layout().client().wait_ready(10):
                return self.kubeconfig
            self.stop()
            self._start_on_free_ports()
        return self.kubeconfig

    def stop(self) -> None:
        """End all its processes. Its files stay, and a later start finds its objects again."""
        for pid in processes.find(SUPERVISOR, self.folder):
            processes.end(pid)

    def remove(self) -> None:
        """End all its processes and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Path:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _layout(self) -> ControlPlaneLayout:
        path = self.folder / "ports.json"
        if not path.exists():
            write_atomically(path, json.dumps(free_ports()))
        api, etcd_client, etcd_peer, manager = json.loads(path.read_text())
        return ControlPlaneLayout(
            folder=self.folder,
            name="shipkeeper-control-plane",
            address=LOOPBACK,
            ports=Ports(api=api, etcd=etcd_client, etcd_peer=etcd_peer, controller_manager=manager),
            service_cidr="10.96.0.0/20",
            api_service_address="10.96.0.1",
        )

    def _start_on_free_ports(self) -> None:
        (self.folder / "ports.json").unlink(missing_ok=True)
        layout = self._layout()
        found = programs.find_assets() or programs.ensure(programs.CONTROL_PLANE)
        manager = found.get("kube-controller-manager") or programs.built("kube-controller-manager")
        # No endpoints for an address that only this machine reaches. Without the controller manager nobody makes the
        # default service accounts, which the admission plugin would ask for.
        without_manager = () if manager else ("--disable-admission-plugins=ServiceAccount",)
        components = [
            etcd(layout, found["etcd"]),
            api_server(
                layout,
                found["kube-apiserver"],
                "--authorization-mode=RBAC",
                "--endpoint-reconciler-type=none",
                *without_manager,
            ),
            *([controller_manager(layout, manager)] if manager else []),
        ]
        layout.write_kubeconfig_for(self.kubeconfig, layout.administrator())
        self._files.write(components)
        processes.spawn(
            *processes.python("-m", SUPERVISOR, self.folder),
            log=self._files.logs / "supervisor.log",
        )
        client = layout.client()
        if not client.wait_ready(START_SECONDS):
            self.stop()
            raise not_ready(self._files.logs)
        if manager:
            wait_for_service_account(client)


def wait_for_service_account(client: ApiClient) -> None:
    """Wait until the controllers work: they make the default service account, which every pod needs."""
    deadline = time.monotonic() + START_SECONDS
    while client.get("/api/v1/namespaces/default/serviceaccounts/default") is None:
        if time.monotonic() > deadline:
            raise LocalClusterError("The controller manager made no default service account in time.")
        time.sleep(0.1)


def not_ready(logs: Path) -> LocalClusterError:
    """The error for an API server that does not become ready, with the ends of the logs that tell why."""
    ends = "\n".join(f"--- {name}\n{last_lines(logs / f'{name}.log', 8)}" for name in ("etcd", "kube-apiserver"))
    return LocalClusterError(f"The API server did not become ready.\n{ends}\nAll logs: {logs}")


def free_ports(count: int = 4) -> list[int]:
    """Distinct ports of the loopback address which nobody listens on.

    They lie below the range that the kernel takes for outgoing connections, so that nobody takes them by chance.
    """
    found: list[int] = []
    candidates = random.sample(range(20_000, 32_000), 500)
    for port in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise LocalClusterError(f"No {count} free ports between 20000 and 32000.")
