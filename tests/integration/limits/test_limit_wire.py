"""The examples in other languages: what docs/limits.md says about the wire is enough to be limited."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.limit_policies import NAMESPACE, install
from support.redis_server import RedisServer

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(command: list[str], folder: Path, *, seconds: int = 900) -> str:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=seconds)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout.strip()


@pytest.mark.parametrize(
    ("example", "prepare", "start"),
    [
        ("limiter-go", ["go", "build", "-o", "example", "."], ["./example"]),
        ("limiter-node", ["npm", "ci", "--no-audit", "--no-fund"], ["node", "acquire.mjs"]),
    ],
    ids=["Go", "Node"],
)
def test_an_example_is_limited(
    redis_server: RedisServer, policy_name: str, tmp_path: Path, example: str, prepare: list[str], start: list[str]
) -> None:
    if shutil.which(prepare[0]) is None:
        pytest.skip(f"{prepare[0]} is not installed")
    folder = tmp_path / example
    shutil.copytree(EXAMPLES / example, folder, ignore=shutil.ignore_patterns("node_modules"))
    install(redis_server, policy_name, {"limits": [{"name": "day", "amount": 1, "period": "Day"}]})
    run(prepare, folder)
    call = [*start, redis_server.url, NAMESPACE, policy_name, "account-1"]
    assert run(call, folder) == "allowed"
    assert run(call, folder).startswith("denied by day: LimitReached, retry after ")
