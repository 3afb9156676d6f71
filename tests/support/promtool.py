"""Prometheus' own tool, which checks rules and plays time series against them."""

import shutil
import subprocess
from pathlib import Path


def promtool(folder: Path, *arguments: str) -> None:
    """Run promtool in a folder; what it finds wrong is the error's text."""
    program = shutil.which("promtool")
    assert program is not None, "promtool is not installed; on Debian: apt-get install prometheus"
    finished = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
