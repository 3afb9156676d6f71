"""What the kind provider asks of kind, docker and kubectl, which stand here as scripts that record their arguments."""

import os
from pathlib import Path

import pytest

from localcluster.errors import LocalClusterError
from localcluster.kind import OK, KindProvider

SCRIPT = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in
  "kind get clusters") cat "$CLUSTERS" ;;
  "kind create cluster"*) echo test > "$CLUSTERS"; echo created > "$KUBECONFIG_MADE" ;;
  "kind delete cluster"*) : > "$CLUSTERS" ;;
  "kind get kubeconfig"*) echo "a kubeconfig" ;;
  "kind get nodes"*) echo test-control-plane ;;
  "docker start"*) : > "$STOPPED" ;;
  "kubectl "*) [ ! -s "$STOPPED" ] ;;
esac
"""


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KindProvider:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("kind", "docker", "kubectl"):
        (programs / name).write_text(SCRIPT)
        (programs / name).chmod(0o755)
    for name in ("CALLS", "CLUSTERS", "STOPPED"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    provider = KindProvider("test")
    monkeypatch.setenv("KUBECONFIG_MADE", str(provider.folder / "kubeconfig"))
    return provider


def calls(tmp_path: Path, start: str) -> list[str]:
    return [line for line in (tmp_path / "CALLS").read_text().splitlines() if line.startswith(start)]


def test_a_cluster_is_created_once(provider: KindProvider, tmp_path: Path) -> None:
    provider.create()
    provider.create()
    assert len(calls(tmp_path, "kind create cluster --name test --wait")) == 1
    assert provider.status() == {"cluster": OK}
    assert provider.kubeconfig().exists()


def test_a_stopped_node_is_started_again(provider: KindProvider, tmp_path: Path) -> None:
    provider.create()
    (tmp_path / "STOPPED").write_text("stopped")
    provider.create()
    assert calls(tmp_path, "docker start") == ["docker start test-control-plane"]
    assert len(calls(tmp_path, "kind create")) == 1


def test_an_image_is_loaded_once_per_cluster(provider: KindProvider, tmp_path: Path) -> None:
    provider.create()
    archive = tmp_path / "image-1234.tar"
    provider.load_image(archive)
    provider.load_image(archive)
    assert calls(tmp_path, "kind load") == [f"kind load image-archive {archive} --name test"]
    provider.delete()
    provider.create()
    provider.load_image(archive)
    assert len(calls(tmp_path, "kind load")) == 2


def test_deleting_removes_the_cluster_and_its_files(provider: KindProvider, tmp_path: Path) -> None:
    provider.create()
    provider.delete()
    assert len(calls(tmp_path, "kind delete cluster --name test")) == 1
    assert not provider.folder.exists()
    assert provider.status() == {"cluster": "does not exist"}
    with pytest.raises(LocalClusterError, match="There is no cluster test"):
        provider.kubeconfig()


def test_missing_programs_are_named(provider: KindProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / "kind").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(LocalClusterError, match="missing: kind"):
        provider.create()
