import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from localcluster import debian
from localcluster.errors import LocalClusterError
from localcluster.images import buildsettings, choose_engine
from localcluster.images.baseimage import debian_sources
from localcluster.images.docker import DockerEngine
from localcluster.images.engine import POSTGRES_TAG, REDIS_TAG, check_service_tag
from localcluster.images.fingerprint import copied_patterns, fingerprint
from localcluster.pause import docker_archive

DOCKERFILE = """FROM base AS build
COPY --chown=1:1 one.txt \\
     two.txt /src/
COPY folder /src/folder
ADD ["with space.txt", "/src/"]
COPY --from=build /src /app
RUN echo COPY nothing
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "one.txt", "two.txt", "with space.txt", "folder/inner/file.py", "elsewhere.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def mark(context: Path, *, salt: str = "", **build_args: str) -> str:
    return fingerprint(dockerfile=context / "Dockerfile", context=context, build_args=build_args, salt=salt)


def test_what_a_dockerfile_copies_is_found() -> None:
    assert copied_patterns(DOCKERFILE) == ["one.txt", "two.txt", "folder", "with space.txt"]


@pytest.mark.parametrize("name", ["one.txt", "two.txt", "with space.txt", "folder/inner/file.py", "Dockerfile"])
def test_a_change_of_anything_copied_changes_the_fingerprint(context: Path, name: str) -> None:
    before = mark(context)
    with (context / name).open("a") as file:
        file.write("\n# changed\n")
    assert mark(context) != before


def test_other_changes_keep_the_fingerprint(context: Path) -> None:
    before = mark(context)
    (context / "elsewhere.txt").write_text("changed")
    (context / "folder" / "__pycache__").mkdir()
    (context / "folder" / "__pycache__" / "file.pyc").write_text("compiled")
    os.utime(context / "one.txt", (1, 1))
    assert mark(context) == before


def test_mode_new_files_arguments_and_base_change_the_fingerprint(context: Path) -> None:
    marks = [mark(context), mark(context, salt="another base"), mark(context, BASE="other")]
    (context / "one.txt").chmod(0o755)
    marks.append(mark(context))
    (context / "folder" / "new.py").touch()
    marks.append(mark(context))
    assert len(set(marks)) == len(marks)


def test_copying_something_that_does_not_exist_is_named(context: Path) -> None:
    (context / "two.txt").unlink()
    with pytest.raises(LocalClusterError, match=r"copies two\.txt, which does not exist"):
        mark(context)


def test_the_pause_image_is_a_whole_docker_archive_and_always_the_same() -> None:
    content = docker_archive(b"program", "localhost/test:1")
    assert content == docker_archive(b"program", "localhost/test:1")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        manifest = json.loads(files["manifest.json"].read())[0]  # type: ignore[union-attr]
        config = json.loads(files[manifest["Config"]].read())  # type: ignore[union-attr]
        layer = files[manifest["Layers"][0]].read()  # type: ignore[union-attr]
    assert manifest["RepoTags"] == ["localhost/test:1"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as root:
        assert root.extractfile("pause").read() == b"program"  # type: ignore[union-attr]
        assert root.getmember("pause").mode == 0o755
    assert config["config"]["Entrypoint"] == ["/pause"]


def test_mirrors_come_from_the_machine_s_apt() -> None:
    targets = (
        "Debian bookworm https://mirror.example.org/debian main\n"
        "Debian bookworm https://mirror.example.org/debian contrib\n"
        "Debian bookworm-security https://mirror.example.org/security main\n"
        "Other bookworm https://packages.example.org/other main\n"
        "https://no.origin.example.org main\n"
    )
    lines = debian_sources(targets)
    assert [line.split("] ")[1] for line in lines] == [
        "https://mirror.example.org/debian bookworm main",
        "https://mirror.example.org/security bookworm-security main",
    ]


def test_a_machine_without_a_debian_mirror_is_told_so() -> None:
    with pytest.raises(LocalClusterError, match="apt knows no mirror of Debian bookworm"):
        debian_sources("Ubuntu noble https://mirror.example.org/ubuntu main\n")


def test_pip_s_settings_of_the_machine_reach_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in buildsettings.PIP_SETTINGS:
        monkeypatch.delenv(f"PIP_{name.upper().replace('-', '_')}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text(
        "[global]\nindex-url = https://packages.example.org/%7Eteam\nno-color = 1\ntimeout = 7\n"
    )
    monkeypatch.setenv("PIP_TIMEOUT", "9")
    monkeypatch.setenv("PIP_CERT", "/somewhere/bundle.pem")
    lines = buildsettings.pip_configuration().splitlines()
    assert "index-url = https://packages.example.org/%7Eteam" in lines
    assert "timeout = 9" in lines
    assert f"cert = {buildsettings.CA_BUNDLE}" in lines
    assert not any("no-color" in line for line in lines)


def test_a_service_s_image_is_known_by_its_tag() -> None:
    assert (check_service_tag(POSTGRES_TAG), check_service_tag(REDIS_TAG)) == ("postgres", "redis")
    with pytest.raises(LocalClusterError, match="No image mysql:8 is known"):
        check_service_tag("mysql:8")


def test_docker_builds_for_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "kind")
    assert isinstance(choose_engine(), DockerEngine)


def test_services_are_not_started_while_packages_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, saved = tmp_path / "policy-rc.d", tmp_path / "saved"
    monkeypatch.setattr(debian, "POLICY", policy)
    monkeypatch.setattr(debian, "SAVED_POLICY", saved)
    with debian.no_service_starts():
        assert policy.read_text() == debian.POLICY_TEXT
        assert os.access(policy, os.X_OK)
    assert not policy.exists()
    policy.write_text("the machine's own")
    with pytest.raises(RuntimeError, match="apt-get failed"), debian.no_service_starts():
        raise RuntimeError("apt-get failed")
    assert policy.read_text() == "the machine's own"


def test_a_policy_that_a_killed_run_left_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, saved = tmp_path / "policy-rc.d", tmp_path / "saved"
    monkeypatch.setattr(debian, "POLICY", policy)
    monkeypatch.setattr(debian, "SAVED_POLICY", saved)
    policy.write_text(debian.POLICY_TEXT)
    saved.write_text("the machine's own")
    with debian.no_service_starts():
        assert policy.read_text() == debian.POLICY_TEXT
    assert policy.read_text() == "the machine's own"
    assert not saved.exists()


def test_missing_packages_are_named_to_who_cannot_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "missing", lambda packages: ["runc"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(LocalClusterError, match="sudo apt-get install runc"):
        debian.ensure(["runc"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LocalClusterError, match="needs Debian with these packages: runc"):
        debian.ensure(["runc"])
