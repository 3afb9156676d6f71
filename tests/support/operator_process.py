"""The operator as a real process against a test's API server: started, asked, stopped or killed."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support.apiserver import ApiServer, eventually

_WRITES = ("apply", "patch", "create", "update", "delete")


class OperatorProcess:
    """One replica, which serves one namespace and keeps its Lease there."""

    def __init__(
        self,
        api_server: ApiServer,
        *,
        namespace: str,
        command: Sequence[str] = (sys.executable, "-m", "shipkeeper_operator.main"),
        identity: str = "replica-a",
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """Take how to start it; nothing is started yet."""
        self._log = log or api_server.kubeconfig.parent / f"operator-{namespace}-{identity}.log"
        self._command = list(command)
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(api_server.kubeconfig),
            "SHIPKEEPER_NAMESPACE": namespace,
            "SHIPKEEPER_IDENTITY": identity,
            "SHIPKEEPER_WATCH_NAMESPACES": namespace,
            "SHIPKEEPER_HTTP_HOST": "127.0.0.1",
            "SHIPKEEPER_HTTP_PORT": "0",
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The process itself."""
        assert self._process is not None, "the operator was not started"
        return self._process

    def start(self) -> "OperatorProcess":
        """Start the process."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        self._port = None
        return self

    def stop(self, *, timeout: float = 30) -> int:
        """End it as Kubernetes does, by SIGTERM; return the exit code."""
        self.process.terminate()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """End it without warning."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "OperatorProcess":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        if kind is not None:
            print(f"--- log of {self._log.name}\n{self._log.read_text()[-8000:]}")

    def log_lines(self) -> list[dict[str, Any]]:
        """Return what it logged so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def log_text(self) -> str:
        """Return all it wrote, JSON or not."""
        return self._log.read_text()

    @property
    def port(self) -> int:
        """The port of its HTTP server, once it serves."""
        if self._port is None:
            self._port = eventually(self._logged_port, what="the operator's HTTP server")
        return self._port

    def _logged_port(self) -> int | None:
        assert self.process.poll() is None, f"the operator ended: {self._log.read_text()[-4000:]}"
        messages = [line["message"] for line in self.log_lines() if " on port " in line["message"]]
        return int(messages[0].rpartition(" ")[2]) if messages else None

    def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """Ask /healthz or /readyz; return status and answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def wait_ready(self, *, timeout: float = 30) -> None:
        """Wait until it says that it is ready."""
        eventually(lambda: self.probe("/readyz")[0] == 200, timeout=timeout, what="a ready operator")

    def wait_leading(self, *, timeout: float = 30) -> None:
        """Wait until it leads and its workers were started."""
        self.wait_ready(timeout=timeout)
        eventually(
            lambda: any(line["message"] == "Reconciling" for line in self.log_lines()),
            timeout=timeout,
            what="a leading operator",
        )

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return all of its metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as response:
            text = response.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all samples that carry these labels."""
        wanted = labels.items()
        return sum(value for (found, have), value in self.samples().items() if found == name and have >= wanted)

    def writes(self) -> dict[str, int]:
        """Return its writes to the API server so far by `verb kind`, the Lease's aside."""
        counts: dict[str, int] = {}
        for (name, labels), value in self.samples().items():
            by_name = dict(labels)
            if name == "shipkeeper_api_requests_total" and by_name["verb"] in _WRITES and by_name["kind"] != "Lease":
                what = f"{by_name['verb']} {by_name['kind']}"
                counts[what] = counts.get(what, 0) + int(value)
        return counts
