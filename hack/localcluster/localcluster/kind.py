"""The provider `kind`: Kubernetes in Docker, for machines with a Docker engine. Its programs come from PATH."""

import shutil
from pathlib import Path

from localcluster import paths
from localcluster.errors import LocalClusterError
from localcluster.locks import exclusive
from localcluster.progress import step
from localcluster.shell import run, run_logged

PROGRAMS = ("docker", "kind", "kubectl")
OK = "ok"


class KindProvider:
    """See the module. Only the kubeconfig and a record of loaded images are kept in the user's state folder."""

    def __init__(self, cluster: str) -> None:
        self.name = cluster
        self.folder = paths.clusters_folder() / f"kind-{cluster}"

    def create(self) -> None:
        """See Provider."""
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise LocalClusterError(
                f"CLUSTER=kind needs {', '.join(PROGRAMS)} on PATH; missing: {', '.join(missing)}. "
                "On Debian, CLUSTER=local needs none of them."
            )
        with exclusive(paths.clusters_folder() / f"kind-{self.name}.lock", f"working on the cluster {self.name}"):
            if self._exists():
                if all(text == OK for text in self.status().values()):
                    return
                self._restart()
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, mode=0o700)
            with step(f"creating the kind cluster {self.name}"):
                run_logged(
                    *("kind", "create", "cluster", "--name", self.name, "--wait", "180s"),
                    *("--kubeconfig", self.folder / "kubeconfig"),
                    log=paths.cache_folder() / "logs" / "kind.log",
                )

    def status(self) -> dict[str, str]:
        """See Provider."""
        if not self._exists():
            return {"cluster": "does not exist"}
        try:
            run("kubectl", "--kubeconfig", self._write_kubeconfig(), "get", "--raw", "/readyz", "--request-timeout=5s")
            wait = ("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=5s")
            run("kubectl", "--kubeconfig", self.kubeconfig(), *wait)
        except LocalClusterError as error:
            return {"cluster": str(error)}
        return {"cluster": OK}

    def kubeconfig(self) -> Path:
        """See Provider."""
        path = self.folder / "kubeconfig"
        if not path.exists():
            raise LocalClusterError(f"There is no cluster {self.name}. Make it: make cluster")
        return path

    def kubectl(self) -> Path:
        """See Provider."""
        return Path(shutil.which("kubectl") or "kubectl")

    def load_image(self, archive: Path) -> None:
        """See Provider."""
        record = self.folder / "images" / archive.name
        if record.exists():
            return
        run("kind", "load", "image-archive", archive, "--name", self.name)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()

    def delete(self) -> None:
        """See Provider."""
        if self._exists():
            run("kind", "delete", "cluster", "--name", self.name, "--kubeconfig", self.folder / "kubeconfig")
        shutil.rmtree(self.folder, ignore_errors=True)
        (paths.clusters_folder() / f"kind-{self.name}.lock").unlink(missing_ok=True)

    def _exists(self) -> bool:
        return self.name in run("kind", "get", "clusters").split()

    def _write_kubeconfig(self) -> Path:
        path = self.folder / "kubeconfig"
        paths.write_atomically(path, run("kind", "get", "kubeconfig", "--name", self.name))
        return path

    def _restart(self) -> None:
        """Start a node whose container was stopped, by a reboot for one.

        Raises LocalClusterError when that does not help.
        """
        with step(f"starting the kind cluster {self.name} again"):
            run("docker", "start", *run("kind", "get", "nodes", "--name", self.name).split())
            wait = ("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s")
            run("kubectl", "--kubeconfig", self._write_kubeconfig(), *wait)
