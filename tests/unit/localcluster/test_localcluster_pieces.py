import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from localcluster import locks, paths
from localcluster.controlplane import free_ports
from localcluster.errors import LocalClusterError
from localcluster.kubeconfig import write_kubeconfig
from localcluster.nodeconfig import corefile
from localcluster.pki import Authority
from localcluster.provider import provider_name
from localcluster.shell import run, run_logged
from localcluster.volumes import PROVISIONED_BY, PROVISIONER, released, volume_for, wanting


def openssl(*arguments: str | Path) -> str:
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_certificates_are_signed_for_their_one_use(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    client = authority.client("admin", user="kubernetes-admin", group="system:masters")
    server = authority.server("api", user="api", addresses=("192.0.2.1",), names=("kubernetes",))
    assert "OK" in openssl("verify", "-purpose", "sslclient", "-CAfile", authority.certificate, client.certificate)
    assert "OK" in openssl("verify", "-purpose", "sslserver", "-CAfile", authority.certificate, server.certificate)
    text = openssl("x509", "-noout", "-text", "-in", server.certificate)
    assert "IP Address:192.0.2.1" in text
    assert "DNS:kubernetes" in text
    assert "CA:FALSE" in text
    subject = openssl("x509", "-noout", "-subject", "-in", client.certificate)
    assert "O = system:masters" in subject
    assert "CN = kubernetes-admin" in subject


def test_keys_are_for_their_owner_alone_and_kept(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    pair = authority.client("admin", user="admin")
    signing = authority.service_account_key()
    assert [path.stat().st_mode & 0o777 for path in (pair.key, signing, authority.folder / "ca.key")] == [0o600] * 3
    before = pair.certificate.read_bytes(), signing.read_bytes()
    again = Authority(tmp_path / "pki")
    certificate = again.client("admin", user="admin").certificate
    assert (certificate.read_bytes(), again.service_account_key().read_bytes()) == before


def test_a_certificate_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    pair = authority.client("admin", user="admin")
    pair.certificate.unlink()
    pair.key.write_text("half")
    made = authority.client("admin", user="admin")
    assert openssl("x509", "-noout", "-pubkey", "-in", made.certificate) == openssl("pkey", "-pubout", "-in", made.key)


def test_a_kubeconfig_holds_all_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    path = tmp_path / "kubeconfig"
    write_kubeconfig(
        path,
        name="test",
        server="https://192.0.2.1:6443",
        authority=authority.certificate,
        client=authority.client("admin", user="admin"),
    )
    document = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert document["clusters"][0]["cluster"]["server"] == "https://192.0.2.1:6443"
    assert str(tmp_path) not in path.read_text()


def test_free_ports_are_distinct_and_outside_of_the_range_for_outgoing_connections() -> None:
    ports = free_ports(6)
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 6
    assert all(1024 < port < lowest for port in ports)


def test_a_lock_is_exclusive_and_freed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    order: list[str] = []

    def second() -> None:
        with locks.exclusive(path, "the second one"):
            order.append("second")

    with locks.exclusive(path, "the first one"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "Waiting for another process: the second one" in capsys.readouterr().err


def test_a_failing_program_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match=r"exit code 3:\nthe reason"):
        run("sh", "-c", "echo the reason >&2; exit 3")
    log = tmp_path / "logs" / "step.log"
    with pytest.raises(LocalClusterError, match="the reason") as failure:
        run_logged("sh", "-c", "echo the reason; exit 3", log=log)
    assert str(log) in str(failure.value)
    with pytest.raises(LocalClusterError, match="no-such-program is not installed"):
        run("no-such-program")
    assert run("cat", stdin="words") == "words"


def test_relative_cache_folders_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert paths.cache_folder() == tmp_path / ".cache" / "shipkeeper"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert paths.cache_folder() == Path("/elsewhere/shipkeeper")


@pytest.mark.parametrize("wanted", ["kind", "local"])
def test_cluster_chooses_the_provider(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("CLUSTER", wanted)
    assert provider_name() == wanted


def test_an_unknown_provider_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "minikube")
    with pytest.raises(LocalClusterError, match=r"CLUSTER=minikube is unknown\. Use CLUSTER=kind"):
        provider_name()


@pytest.mark.parametrize(("exit_code", "expected"), [(0, "kind"), (1, "local")])
def test_kind_is_the_default_where_a_docker_engine_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exit_code: int, expected: str
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" = info ] && exit {exit_code}\n')
    docker.chmod(0o755)
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert provider_name() == expected


def claim(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "data", "namespace": "birthday", "uid": "1234"},
        "spec": {
            "storageClassName": "standard",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            **spec,
        },
    }


def test_only_waiting_claims_of_our_class_get_a_volume() -> None:
    deleted = claim()
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    others = [claim(storageClassName="fast"), claim(volumeName="pvc-1234"), deleted]
    assert wanting([claim(), *others]) == [claim()]


def test_a_volume_is_bound_to_its_claim_from_the_beginning() -> None:
    volume = volume_for(claim(), Path("/volumes"))
    assert volume["spec"]["hostPath"]["path"] == "/volumes/pvc-1234"
    assert volume["spec"]["claimRef"]["uid"] == "1234"
    assert volume["spec"]["capacity"] == {"storage": "1Gi"}


def test_only_released_volumes_of_ours_are_deleted() -> None:
    ours = {
        "metadata": {"annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete"},
        "status": {"phase": "Released"},
    }
    bound = {**ours, "status": {"phase": "Bound"}}
    kept = {**ours, "spec": {"persistentVolumeReclaimPolicy": "Retain"}}
    foreign = {**ours, "metadata": {}}
    assert released([ours, bound, kept, foreign]) == [ours]


def test_names_outside_of_the_cluster_are_asked_of_the_machine_s_resolvers() -> None:
    text = corefile("192.0.2.2", Path("/config"), "test", ("192.0.2.53", "198.51.100.53"))
    assert "forward . 192.0.2.53 198.51.100.53" in text
    assert "forward" not in corefile("192.0.2.2", Path("/config"), "test", ())
