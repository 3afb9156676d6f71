import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localcluster import paths, programs
from localcluster.errors import LocalClusterError

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="builds a Go program")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Go's own cache stays where it is.
    if shutil.which("go"):
        own = subprocess.run(["go", "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
        monkeypatch.setenv("GOCACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return paths.cache_folder()


def test_every_program_has_a_pinned_version() -> None:
    versions = {module.version for module, _ in programs.PROGRAMS.values()}
    assert all(version == "own" or version.startswith("v") for version in versions)
    assert programs.KUBERNETES.version in programs.KUBERNETES.linker_flags


def test_a_module_that_is_not_required_is_an_error() -> None:
    assert programs.required_version("require example.org/one v1.2.3\n", "example.org/one") == "v1.2.3"
    assert (
        programs.required_version("require (\n\texample.org/one v1.2.3 // indirect\n)\n", "example.org/one") == "v1.2.3"
    )
    with pytest.raises(LocalClusterError, match=r"does not require example\.org/two"):
        programs.required_version("require example.org/one v1.2.3\n", "example.org/two")


@needs_go
def test_a_program_is_built_once_and_a_half_built_one_is_not_taken(empty_cache: Path) -> None:
    folder = programs.program_folder(programs.PAUSE)
    (folder / ".building-interrupted").mkdir(parents=True)
    (folder / ".building-interrupted" / "pause").write_text("half")
    path = programs.ensure(["pause"])["pause"]
    assert path == programs.built("pause")
    assert os.access(path, os.X_OK)
    first = path.stat()
    assert programs.ensure(["pause"])["pause"].stat().st_ino == first.st_ino


@needs_go
def test_two_processes_build_the_same_program_without_harm() -> None:
    code = "from localcluster import programs; print(programs.ensure(['pause'])['pause'])"
    environment = {**os.environ, "PYTHONPATH": str(paths.source_folder())}
    builders = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = [builder.communicate()[0].strip() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert outputs == [str(programs.built("pause"))] * 2


@needs_go
def test_a_failed_build_shows_the_compiler_s_words_and_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(paths.source_folder() / "go" / "pause", source / "go" / "pause")
    (source / "go" / "pause" / "main.go").write_text("package main\nfunc main() { undefinedFunction() }\n")
    monkeypatch.setattr(paths, "source_folder", lambda: source)
    with pytest.raises(LocalClusterError, match="undefined: undefinedFunction") as failure:
        programs.ensure(["pause"])
    assert str(empty_cache / "logs" / "build-pause.log") in str(failure.value)
    assert programs.built("pause") is None


def test_without_go_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LocalClusterError, match=r"Go 1\.\d+.* is needed to build pause.*CLUSTER=kind"):
        programs.ensure(["pause"])


def test_a_changed_source_gets_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = programs.program_folder(programs.PAUSE)
    source = tmp_path / "source"
    shutil.copytree(paths.source_folder() / "go" / "pause", source / "go" / "pause")
    monkeypatch.setattr(paths, "source_folder", lambda: source)
    assert programs.program_folder(programs.PAUSE) == before
    with (source / "go" / "pause" / "main.go").open("a") as file:
        file.write("// changed\n")
    assert programs.program_folder(programs.PAUSE) != before


def test_assets_of_kubebuilder_are_used_where_they_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    assert programs.find_assets() == {}
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "etcd").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    with pytest.raises(LocalClusterError, match="has no kube-apiserver"):
        programs.find_assets()
    (assets / "kube-apiserver").touch()
    assert programs.find_assets() == {"etcd": assets / "etcd", "kube-apiserver": assets / "kube-apiserver"}
