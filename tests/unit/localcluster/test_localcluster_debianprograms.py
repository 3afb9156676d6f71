import shutil
from pathlib import Path

import pytest

from localcluster import debianprograms
from localcluster.errors import LocalClusterError


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_packages_come_from_the_machine_s_mirror() -> None:
    targets = (
        "Other bookworm https://packages.example.org/other main\n"
        "https://no.origin.example.org main\n"
        "Debian bookworm-security https://mirror.example.org/security main\n"
        "Debian bookworm-updates https://mirror.example.org/updates main\n"
        "Debian bookworm https://mirror.example.org/debian main\n"
    )
    assert debianprograms.debian_mirror(targets) == "https://mirror.example.org/debian"


def test_a_machine_that_knows_no_debian_mirror_uses_debian_s_own() -> None:
    targets = "Ubuntu noble https://mirror.example.org/ubuntu main\n"
    assert debianprograms.debian_mirror(targets) == debianprograms.PUBLIC_MIRROR


def test_a_program_that_was_not_fetched_is_named_with_the_command_to_run(empty_cache: Path) -> None:
    with pytest.raises(LocalClusterError, match=r"valkey-server of Debian trixie .* make programs"):
        debianprograms.program("trixie", "valkey-server")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="runs Debian's apt")
def test_a_mirror_without_the_release_is_an_error_and_leaves_nothing_half_made(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = f"file:{empty_cache}/mirror"
    monkeypatch.setattr(debianprograms, "debian_mirror", lambda targets: mirror)
    with pytest.raises(LocalClusterError, match=f"(?s){mirror}.*The whole log: "):
        debianprograms.ensure()
    assert not [path for path in (empty_cache / "shipkeeper" / "programs").iterdir() if path.is_dir()]
