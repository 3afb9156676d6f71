"""The life of a local cluster: it comes up, mends itself, and leaves nothing behind.

It is a cluster of its own, in namespaces and on a subnet of its own, so it stands beside the one of the other tests.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localcluster import cgroups, local, paths, processes, programs
from localcluster.controlplane import SUPERVISOR, ControlPlane
from localcluster.errors import LocalClusterError
from localcluster.hostnetwork import FORWARDING
from localcluster.local import NODE_INIT, OK, LocalProvider
from localcluster.nodeconfig import PAUSE_IMAGE

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("dpkg-query") is None, reason="the local provider needs root on Debian"
    ),
]

CLUSTER = "lifecycle"
WAIT_SECONDS = 90.0


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def traces() -> dict[str, list[str]]:
    """What a cluster could leave on the machine, apart from processes."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    building = str(paths.cache_folder() / "images")  # Somebody may build an image meanwhile.
    rules = output("iptables-save").splitlines()
    return {
        "mounts": sorted(each[4] for each in mounts if not each[4].startswith(building)),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "routes": sorted(output("ip", "-4", "route", "show", "table", "all").splitlines()),
        # Empty built-in chains stay when a table was used; their policies are compared.
        "rules": sorted(rule for rule in rules if rule.startswith("-")),
        "policies": sorted(rule.split(" [")[0] for rule in rules if rule.startswith(":FORWARD")),
        "forwarding": [FORWARDING.read_text()],
        "groups": sorted(
            str(path)
            for top in cgroups.hierarchies(Path("/proc/self/mounts").read_text())
            for path in top.iterdir()
            if path.is_dir()
        ),
        "folders": sorted(
            str(path) for top in ("/run", "/var/lib", "/var/log", "/etc", "/opt") for path in Path(top).iterdir()
        ),
    }


@pytest.fixture(scope="module")
def before() -> dict[str, list[str]]:
    # Reading the rules may itself load the kernel's tables; the first reading does that.
    traces()
    return traces()


@pytest.fixture(scope="module")
def cluster(before: dict[str, list[str]]) -> Iterator[LocalProvider]:
    provider = LocalProvider(CLUSTER)
    provider.delete()
    provider.create()
    yield provider
    provider.delete()


def kubectl(cluster: LocalProvider, *arguments: str) -> str:
    return output(str(cluster.kubectl()), "--kubeconfig", str(cluster.kubeconfig()), *arguments)


def eventually(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not check():
        assert time.monotonic() < deadline, f"{what} did not happen in {WAIT_SECONDS:.0f} s"
        time.sleep(0.2)


def running_pods(cluster: LocalProvider) -> list[str]:
    pods = json.loads(kubectl(cluster, "get", "pods", "-l", "app=sleeper", "-o", "json"))["items"]
    return [
        pod["metadata"]["name"]
        for pod in pods
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))
    ]


@pytest.fixture(scope="module")
def sleeper(cluster: LocalProvider) -> str:
    """A pod that needs nothing but the node."""
    kubectl(cluster, "create", "deployment", "sleeper", f"--image={PAUSE_IMAGE}")
    kubectl(cluster, "wait", "--for=condition=Available", "deployment/sleeper", f"--timeout={WAIT_SECONDS:.0f}s")
    return running_pods(cluster)[0]


def test_every_part_works(cluster: LocalProvider) -> None:
    assert set(cluster.status().values()) == {OK}
    assert kubectl(cluster, "get", "--raw", "/readyz") == "ok"


def test_the_kubeconfig_is_for_its_owner_alone(cluster: LocalProvider) -> None:
    assert cluster.kubeconfig().stat().st_mode & 0o777 == 0o600


def test_creating_a_healthy_cluster_again_touches_nothing(cluster: LocalProvider) -> None:
    node = processes.find(NODE_INIT, cluster.folder)
    api_server = cluster.component_pid("kube-apiserver")
    cluster.create()
    assert processes.find(NODE_INIT, cluster.folder) == node
    assert cluster.component_pid("kube-apiserver") == api_server


def test_a_claim_gets_a_volume_and_the_volume_goes_with_it(cluster: LocalProvider) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    manifest = cluster.folder / "claim.json"
    manifest.write_text(json.dumps(claim))
    kubectl(cluster, "apply", "-f", str(manifest))
    kubectl(cluster, "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/data", f"--timeout={WAIT_SECONDS:.0f}s")
    volumes = list((cluster.folder / "volumes").iterdir())
    assert [path.stat().st_mode & 0o777 for path in volumes] == [0o777]
    kubectl(cluster, "delete", "pvc/data")
    eventually(lambda: not volumes[0].exists(), "deleting the volume's folder")
    eventually(lambda: kubectl(cluster, "get", "pv", "-o", "name") == "", "deleting the volume")


@pytest.mark.parametrize("component", ["etcd", "kube-apiserver", "containerd", "kubelet", "kube-proxy", "coredns"])
def test_a_killed_component_is_mended(cluster: LocalProvider, sleeper: str, component: str) -> None:
    killed = cluster.component_pid(component)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not processes.is_running(killed), f"the end of {component}")
    cluster.create()
    assert cluster.component_pid(component) != killed
    assert set(cluster.status().values()) == {OK}
    eventually(lambda: running_pods(cluster) == [sleeper], "the pod being ready")


def test_a_frozen_component_is_mended_by_starting_the_node_again(cluster: LocalProvider, sleeper: str) -> None:
    frozen = cluster.component_pid("kube-apiserver")
    os.kill(frozen, signal.SIGSTOP)
    cluster.create()
    assert not processes.is_running(frozen)
    assert set(cluster.status().values()) == {OK}
    eventually(lambda: running_pods(cluster) == [sleeper], "the pod running again")


def test_a_dead_node_comes_back_with_its_objects(cluster: LocalProvider, sleeper: str) -> None:
    for pid in processes.find(NODE_INIT, cluster.folder):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes.find(NODE_INIT, cluster.folder), "the end of the node")
    assert cluster.status() == {"node": "does not run"}
    cluster.create()
    assert set(cluster.status().values()) == {OK}
    eventually(lambda: running_pods(cluster) == [sleeper], "the pod running again")


def test_a_start_that_was_interrupted_is_finished(cluster: LocalProvider) -> None:
    kubectl(cluster, "delete", "service", "kube-dns", "--namespace=kube-system")
    cluster.kubeconfig().unlink()
    cluster.create()
    assert (
        kubectl(cluster, "get", "service", "kube-dns", "--namespace=kube-system", "-o", "name") == "service/kube-dns\n"
    )


def test_unreadable_data_are_given_up(cluster: LocalProvider) -> None:
    for pid in processes.find(NODE_INIT, cluster.folder):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes.find(NODE_INIT, cluster.folder), "the end of the node")
    for path in (cluster.folder / "etcd").rglob("*.wal"):
        path.write_bytes(b"not a log")
    cluster.create()
    assert set(cluster.status().values()) == {OK}
    assert kubectl(cluster, "get", "deployments", "-o", "name") == ""


def test_changed_configuration_starts_the_node_again(cluster: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    node = processes.find(NODE_INIT, cluster.folder)
    monkeypatch.setattr(local, "upstream_resolvers", lambda: ["192.0.2.53"])
    cluster.create()
    assert processes.find(NODE_INIT, cluster.folder) != node
    assert "192.0.2.53" in (cluster.folder / "config" / "Corefile").read_text()
    assert set(cluster.status().values()) == {OK}


def test_deleting_leaves_nothing_behind(cluster: LocalProvider, before: dict[str, list[str]]) -> None:
    kubectl(cluster, "create", "deployment", "last", f"--image={PAUSE_IMAGE}")
    kubectl(cluster, "wait", "--for=condition=Available", "deployment/last", f"--timeout={WAIT_SECONDS:.0f}s")
    inside = processes.namespace(cluster.component_pid("kubelet"), "pid")
    cluster.delete()
    everything = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    assert [pid for pid in everything if processes.namespace(pid, "pid") == inside] == []
    assert processes.find(NODE_INIT, cluster.folder) == []
    assert not cluster.folder.exists()
    after = traces()
    assert {kind: sorted(set(after[kind]) - set(before[kind])) for kind in before} == {kind: [] for kind in before}
    with pytest.raises(LocalClusterError, match="There is no cluster"):
        cluster.kubeconfig()


def test_control_planes_stand_side_by_side_and_mend_themselves(tmp_path: Path) -> None:
    first, second = ControlPlane(tmp_path / "first"), ControlPlane(tmp_path / "second")
    try:
        assert first.start().read_text() != second.start().read_text()
        status = json.loads((first.folder / "supervisor.status.json").read_text())
        os.kill(status["etcd"]["pid"], signal.SIGKILL)
        assert first.start() == first.kubeconfig
        assert first.is_running()
        second.stop()
        assert processes.find(SUPERVISOR, second.folder) == []
        assert first.is_running()
    finally:
        first.remove()
        second.remove()
    assert processes.find(SUPERVISOR, first.folder) == []
    assert not first.folder.exists()


def test_assets_of_kubebuilder_make_a_control_plane_without_the_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for name, path in programs.ensure(["etcd", "kube-apiserver", "kubectl"]).items():
        (assets / name).symlink_to(path)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    control_plane = ControlPlane(tmp_path / "control-plane")
    with control_plane as kubeconfig:
        # Nobody makes the default service account here, and a pod can be created nevertheless.
        created = output(
            str(programs.ensure(["kubectl"])["kubectl"]), f"--kubeconfig={kubeconfig}", "run", "pod", "--image=none"
        )
    assert created == "pod/pod created\n"
    assert not (tmp_path / "empty").exists()
    assert not control_plane.is_running()
