"""Runs other programs and turns their failures into messages that can be acted upon."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from localcluster.errors import LocalClusterError
from localcluster.paths import last_lines


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: str = "") -> str:
    """Run a program and return what it printed. `env` is added to the environment.

    Raises LocalClusterError with the end of the program's own messages when it fails or does not exist.
    """
    arguments = [str(part) for part in command]
    try:
        result = subprocess.run(
            arguments,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
    except FileNotFoundError as error:
        raise LocalClusterError(f"The program {arguments[0]} is not installed or not on PATH.") from error
    if result.returncode != 0:
        detail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-20:])
        raise LocalClusterError(f"{shlex.join(arguments)} ended with exit code {result.returncode}:\n{detail}")
    return result.stdout


def run_logged(
    *command: str | Path, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, append: bool = False
) -> None:
    """Run a long program with its output in a log file.

    Raises LocalClusterError with the end of the log and its path when it fails or does not exist.
    """
    arguments = [str(part) for part in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a" if append else "w") as output:
        output.write(f"$ {shlex.join(arguments)}\n")
        output.flush()
        try:
            result = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=cwd,
                env={**os.environ, **(env or {})},
            )
        except FileNotFoundError as error:
            raise LocalClusterError(f"The program {arguments[0]} is not installed or not on PATH.") from error
    if result.returncode != 0:
        raise LocalClusterError(
            f"{arguments[0]} ended with exit code {result.returncode}. The end of its log:\n{last_lines(log)}\n"
            f"The whole log: {log}"
        )
