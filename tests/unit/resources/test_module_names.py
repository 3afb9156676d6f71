"""The folder `operator/` at the root must never hide Python's own module of that name."""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_operator_is_pythons_own_from_the_repositorys_root() -> None:
    """In a process of its own, isolated from what this one has already imported, and with the root searched first."""
    script = "import sys; sys.path.insert(0, '.'); import operator; print(operator.__file__)"
    ran = subprocess.run([sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(ran.stdout.strip()) == Path(sysconfig.get_path("stdlib")) / "operator.py"


def test_the_two_roots_are_folders_and_no_packages() -> None:
    assert (ROOT / "operator" / "shipkeeper_operator" / "__init__.py").exists()
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "core" / "__init__.py").exists()


def test_the_models_need_neither_yaml_nor_kubernetes() -> None:
    """An application that only obeys a policy installs neither."""
    script = "import sys, shipkeeper.resources; print(sorted({'yaml', 'kubernetes', 'kopf'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
