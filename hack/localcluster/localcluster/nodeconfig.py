"""Writes the configuration of a node's programs and lists them as components."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import controlplane, processes, volumes
from localcluster.controlplane import LOOPBACK, ControlPlaneLayout, Ports
from localcluster.paths import write_atomically
from localcluster.subnets import Network
from localcluster.supervisor import Component

NODE_NAME = "shipkeeper-node"
PAUSE_IMAGE = "localhost/shipkeeper/pause:1"
CLUSTER_DOMAIN = "cluster.local"
CNI_PLUGINS = Path("/usr/lib/cni")
# In a network namespace of its own the node has all ports to itself.
PORTS = Ports(api=6443, etcd=2379, etcd_peer=2380, controller_manager=10257)


@dataclass(frozen=True, kw_only=True)
class NodeLayout:
    """Everything that decides a node's configuration."""

    folder: Path
    name: str
    network: Network
    programs: dict[str, Path]
    resolvers: tuple[str, ...]

    @property
    def control_plane(self) -> ControlPlaneLayout:
        """The layout of the control plane that runs on the node."""
        return ControlPlaneLayout(
            folder=self.folder,
            name=self.name,
            address=self.network.node,
            ports=PORTS,
            service_cidr=self.network.services,
            api_service_address=self.network.api_service,
        )

    @property
    def containerd_socket(self) -> Path:
        """Where containerd answers, also outside of the node's namespaces."""
        return self.folder / "containerd.sock"

    def _write(self, name: str, content: str | dict[str, Any]) -> Path:
        path = self.folder / "config" / name
        write_atomically(path, content if isinstance(content, str) else json.dumps(content, indent=1))
        return path

    def _kubeconfig(self, user: str, group: str = "") -> Path:
        pair = self.control_plane.authority().client(user.replace(":", "-"), user=user, group=group)
        path = self.folder / "config" / f"{user.replace(':', '-')}.kubeconfig"
        return self.control_plane.write_kubeconfig_for(path, pair)

    def components(self) -> list[Component]:
        """Write all configuration files and return the programs of the node, the control plane's included."""
        api = f"tcp:{self.network.node}:{PORTS.api}"
        return [
            *self._control_plane_components(),
            self._scheduler(api),
            self._containerd(),
            self._kubelet(api),
            self._kube_proxy(api),
            self._coredns(api),
            self._volume_provisioner(api),
        ]

    def _control_plane_components(self) -> list[Component]:
        layout = self.control_plane
        to_kubelet = layout.authority().client("kubelet-client", user="kube-apiserver", group="system:masters")
        return [
            controlplane.etcd(layout, self.programs["etcd"]),
            controlplane.api_server(
                layout,
                self.programs["kube-apiserver"],
                *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
                # The node's name does not resolve on the machine.
                "--kubelet-preferred-address-types=InternalIP",
                f"--kubelet-certificate-authority={layout.authority().certificate}",
                f"--kubelet-client-certificate={to_kubelet.certificate}",
                f"--kubelet-client-key={to_kubelet.key}",
            ),
            controlplane.controller_manager(layout, self.programs["kube-controller-manager"]),
        ]

    def _scheduler(self, api: str) -> Component:
        config = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self._kubeconfig("system:kube-scheduler"))},
            "leaderElection": {"leaderElect": False},
        }
        path = self._write("kube-scheduler.json", config)
        return Component(
            name="kube-scheduler",
            needs=(api,),
            command=(str(self.programs["kube-scheduler"]), f"--config={path}", f"--bind-address={LOOPBACK}"),
        )

    def _containerd(self) -> Component:
        networks = self.folder / "config" / "cni"
        pods = {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    # A link of its own for each pod. On a bridge, answers between pods of one node would bypass the
                    # machine's address translation unless br_netfilter is loaded, and Services would fail.
                    "type": "ptp",
                    "ipMasq": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.network.pods}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        self._write("cni/10-pods.conflist", pods)
        path = self._write("containerd.toml", containerd_config(self.folder, self.containerd_socket, networks))
        return Component(name="containerd", command=("/usr/bin/containerd", f"--config={path}"))

    def _kubelet(self, api: str) -> Component:
        authority = self.control_plane.authority()
        serving = authority.server("kubelet", user=f"system:node:{NODE_NAME}", addresses=(self.network.node,))
        resolvers = "".join(f"nameserver {server}\n" for server in self.resolvers)
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.network.node,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup_name(self.name)}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            "clusterDNS": [self.network.dns_service],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": str(self._write("resolv.conf", resolvers)),
            "containerRuntimeEndpoint": f"unix://{self.containerd_socket}",
            # The disk and the memory are the machine's, shared with all that runs beside the cluster.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "podLogsDir": str(self.folder / "pod-logs"),
            "volumePluginDir": str(self.folder / "kubelet" / "volume-plugins"),
            "healthzBindAddress": LOOPBACK,
            "rotateCertificates": False,
        }
        return Component(
            name="kubelet",
            needs=(api, f"unix:{self.containerd_socket}"),
            command=(
                *(str(self.programs["kubelet"]), f"--config={self._write('kubelet.json', config)}"),
                f"--kubeconfig={self._kubeconfig(f'system:node:{NODE_NAME}', 'system:nodes')}",
                *(f"--hostname-override={NODE_NAME}", f"--node-ip={self.network.node}"),
                f"--root-dir={self.folder / 'kubelet'}",
            ),
        )

    def _kube_proxy(self, api: str) -> Component:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self._kubeconfig("system:kube-proxy"))},
            "clusterCIDR": self.network.pods,
            "hostnameOverride": NODE_NAME,
            "mode": "iptables",
            "healthzBindAddress": f"{LOOPBACK}:10256",
            "metricsBindAddress": f"{LOOPBACK}:10249",
            # These settings belong to the machine and cannot be changed from a network namespace.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        path = self._write("kube-proxy.json", config)
        return Component(
            name="kube-proxy", needs=(api,), command=(str(self.programs["kube-proxy"]), f"--config={path}")
        )

    def _coredns(self, api: str) -> Component:
        kubeconfig = self._kubeconfig("system:coredns")
        path = self._write("Corefile", corefile(self.network.node, kubeconfig, self.name, self.resolvers))
        return Component(name="coredns", needs=(api,), command=(str(self.programs["coredns"]), "-conf", str(path)))

    def _volume_provisioner(self, api: str) -> Component:
        layout = self.control_plane
        pair = layout.administrator()
        arguments = (layout.address, layout.ports.api, layout.authority().certificate, pair.certificate, pair.key)
        module = processes.python("-m", "localcluster.volumes", *map(str, arguments), self.folder / "volumes")
        return Component(name="volume-provisioner", needs=(api,), command=module)


def cgroup_name(cluster: str) -> str:
    """The control group above all pods of a cluster."""
    return f"shipkeeper-{cluster}"


def containerd_config(folder: Path, socket: Path, networks: Path) -> str:
    """A containerd with root, state and socket of its own, so that it stands beside any other on the machine.

    The state folder lies in /run of the node's mount namespace: it ends with the processes it speaks of.
    """
    return f"""version = 2
root = "{folder}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Where the machine forbids a negative score, runc would fail at the start of every pod.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""  # noqa: E501


def corefile(address: str, kubeconfig: Path, context: str, resolvers: tuple[str, ...]) -> str:
    """CoreDNS for the cluster's names, and for all others the machine's resolvers."""
    forward = f"forward . {' '.join(resolvers)}" if resolvers else ""
    return f""".:53 {{
    bind {address}
    errors
    ready {LOOPBACK}:8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig} {context}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    {forward}
    cache 5
    loop
}}
"""


def system_objects(network: Network) -> list[tuple[str, dict[str, Any]]]:
    """What must exist in the cluster for DNS and for volumes: (path in the API, object)."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    kube_system = {"namespace": "kube-system"}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
    }
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", **kube_system},
        "spec": {"clusterIP": network.dns_service, "ports": ports},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", **kube_system, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [network.node], "conditions": {"ready": True}}],
        "ports": ports,
    }
    return [
        (f"{rbac}/clusterroles/system:coredns", role),
        (f"{rbac}/clusterrolebindings/system:coredns", binding),
        ("/api/v1/namespaces/kube-system/services/kube-dns", service),
        ("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns", endpoints),
        (f"/apis/storage.k8s.io/v1/storageclasses/{volumes.STORAGE_CLASS}", volumes.storage_class()),
    ]
