"""An application that installs no Prometheus client uses the limiter, and is told what its metrics would need."""

import subprocess
import sys

BLOCKED = "import sys; sys.modules['prometheus_client'] = None; "


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_a_limiter_works_without_the_prometheus_client() -> None:
    ran = run(
        BLOCKED + "from shipkeeper.limits import Limiter, asgi\n"
        "limiter = Limiter.from_url('redis://127.0.0.1:1/0', namespace='n', policy='p')\n"
        "print(limiter.acquire().store_failure)"
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "Unreachable"), ran.stderr


def test_metrics_without_the_prometheus_client_say_what_to_install() -> None:
    ran = run(BLOCKED + "import shipkeeper.limits.metrics")
    assert ran.returncode == 1
    assert "install shipkeeper[metrics]" in ran.stderr.splitlines()[-1]


def test_the_limiter_loads_no_prometheus_client_by_itself() -> None:
    ran = run("import shipkeeper.limits, shipkeeper.limits.asgi, sys; print('prometheus_client' in sys.modules)")
    assert ran.stdout.strip() == "False", ran.stderr
