"""How the operator does with many AppDeployments on a real API server: `python tests/benchmarks/operator_scale.py`.

It starts a control plane of its own (no node: Deployments get their ReplicaSets and pending pods), the operator as a
real process, and prints: seconds and writes to bring the applications up, memory, writes while nothing changes, and the
time from a changed spec to the changed Deployment, one change after the other.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("tests", "hack", "hack/localcluster")]

from localcluster.controlplane import ControlPlane  # noqa: E402
from shipkeeper_operator.connection import Connection  # noqa: E402
from support.apiserver import ApiServer  # noqa: E402
from support.operator_process import OperatorProcess  # noqa: E402

APPS = "/apis/shipkeeper.dev/v1alpha1/namespaces/{}/appdeployments"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"


def application(name: str, image: str) -> dict[str, Any]:
    """Return a small but not trivial AppDeployment."""
    return {
        "apiVersion": "shipkeeper.dev/v1alpha1",
        "kind": "AppDeployment",
        "metadata": {"name": name},
        "spec": {
            "image": image,
            "port": 8000,
            "replicas": 1,
            "env": [{"name": f"SETTING_{number}", "value": "value"} for number in range(5)],
            "probes": {"liveness": {"path": "/health"}, "readiness": {"path": "/ready"}},
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        },
    }


class Api:
    """Requests to the API server as an administrator."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    async def apply(self, path: str, body: dict[str, Any]) -> None:
        url = f"{self._server}{path}/{body['metadata']['name']}?fieldManager=benchmark&force=true"
        headers = {"Content-Type": "application/apply-patch+yaml"}
        async with self._session.patch(url, data=json.dumps(body), headers=headers) as response:
            response.raise_for_status()
            await response.read()

    async def list(self, path: str) -> dict[str, Any]:
        async with self._session.get(self._server + path) as response:
            response.raise_for_status()
            found: dict[str, Any] = await response.json()
            return found

    async def watch(self, path: str, version: str) -> AsyncIterator[dict[str, Any]]:
        url = f"{self._server}{path}?watch=true&resourceVersion={version}"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(url, timeout=timeout) as response:
            while line := await response.content.readline():
                yield json.loads(line)


async def in_parallel(limit: int, calls: list[Any]) -> None:
    """Await all calls, so many at a time."""
    gate = asyncio.Semaphore(limit)

    async def one(call: Any) -> None:
        async with gate:
            await call

    await asyncio.gather(*(one(call) for call in calls))


def memory(pid: int) -> str:
    """Return resident memory now and at its highest."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return f"{values['VmRSS']:.0f} MiB (peak {values['VmHWM']:.0f})"


def cpu_seconds(pid: int) -> float:
    """Return the processor time that the process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def total(writes: dict[str, int]) -> int:
    """Return the number of writes, Events aside."""
    return sum(count for what, count in writes.items() if not what.endswith(" Event"))


async def until(check: Any, *, every: float = 0.5) -> float:
    """Wait for a check; return the seconds it took."""
    began = time.monotonic()
    while not await check():  # noqa: ASYNC110 - what is waited for is in other processes.
        await asyncio.sleep(every)
    return time.monotonic() - began


async def measure_changes(api: Api, namespace: str, count: int) -> list[float]:
    """Change one application after the other; return the seconds until each Deployment follows."""
    found = await api.list(DEPLOYMENTS.format(namespace) + "?limit=1")
    seen: dict[str, asyncio.Event] = {}

    async def follow() -> None:
        async for event in api.watch(DEPLOYMENTS.format(namespace), found["metadata"]["resourceVersion"]):
            name = event["object"]["metadata"]["name"]
            image = event["object"]["spec"]["template"]["spec"]["containers"][0]["image"]
            if image.endswith(":2") and name in seen:
                seen[name].set()

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.5)
    seconds = []
    for number in range(count):
        name = f"app-{number:04d}"
        seen[name] = asyncio.Event()
        began = time.monotonic()
        await api.apply(APPS.format(namespace), application(name, "example.invalid/app:2"))
        await asyncio.wait_for(seen[name].wait(), 60)
        seconds.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    following.cancel()
    return seconds


async def run(server: ApiServer, *, count: int, steady_seconds: int) -> None:
    """Measure and print."""
    configuration = Configuration()
    await config.load_kube_config(str(server.kubeconfig), client_configuration=configuration)
    connection = Connection(configuration)
    namespace = server.create_namespace("scale")
    async with connection.watch_session() as session:
        api = Api(session, connection.server)
        with OperatorProcess(server, namespace=namespace) as operator:
            await asyncio.to_thread(operator.wait_leading)
            print(f"memory, nothing to do: {memory(operator.process.pid)}", flush=True)
            began, cpu = time.monotonic(), cpu_seconds(operator.process.pid)
            names = [f"app-{number:04d}" for number in range(count)]
            await in_parallel(
                16, [api.apply(APPS.format(namespace), application(name, "example.invalid/app:1")) for name in names]
            )
            print(f"{count} AppDeployments applied in {time.monotonic() - began:.1f} s", flush=True)

            async def all_deployed() -> bool:
                return (
                    await asyncio.to_thread(operator.metric, "shipkeeper_cache_objects", kind="Deployment")
                ) >= count

            await until(all_deployed, every=1)
            up = time.monotonic() - began
            print(f"all Deployments there after {up:.1f} s: {count / up:.1f} objects/s", flush=True)

            async def at_rest() -> bool:
                before = await asyncio.to_thread(operator.metric, "shipkeeper_reconcile_total")
                await asyncio.sleep(5)
                return bool(await asyncio.to_thread(operator.metric, "shipkeeper_reconcile_total") == before)

            await until(at_rest)
            writes = await asyncio.to_thread(operator.writes)
            print(f"at rest after {time.monotonic() - began:.1f} s")
            print(f"writes per AppDeployment: {total(writes) / count:.2f} and Events; in all: {writes}")
            used = cpu_seconds(operator.process.pid) - cpu
            print(f"processor time per AppDeployment: {used / count * 1000:.1f} ms", flush=True)
            passes = operator.metric("shipkeeper_reconcile_total")
            print(f"passes per AppDeployment: {passes / count:.2f}")
            print(f"memory, {count} AppDeployments: {memory(operator.process.pid)}", flush=True)
            await asyncio.sleep(steady_seconds)
            after = await asyncio.to_thread(operator.writes)
            print(f"writes in {steady_seconds} s of rest: {total(after) - total(writes)}", flush=True)
            seconds = sorted(await measure_changes(api, namespace, count))
            centiles = statistics.quantiles(seconds, n=100)
            print(
                f"spec change to changed Deployment over {count}: median {statistics.median(seconds) * 1000:.0f} ms, "
                f"p99 {centiles[98] * 1000:.0f} ms, longest {seconds[-1] * 1000:.0f} ms"
            )
            print(f"memory at the end: {memory(operator.process.pid)}", flush=True)
    await connection.close()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--apps", type=int, default=1000)
    parser.add_argument("--steady-seconds", type=int, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        control_plane = ControlPlane(Path(folder))
        control_plane.start()
        try:
            server = ApiServer(control_plane)
            server.install_crds()
            asyncio.run(run(server, count=options.apps, steady_seconds=options.steady_seconds))
        finally:
            control_plane.remove()


if __name__ == "__main__":
    main()
