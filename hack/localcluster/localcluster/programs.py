"""Builds the programs of a cluster from pinned Go modules and keeps them for every checkout.

A program's cache folder carries the version and a hash of everything that decides its content. A program appears there
by one rename when it is whole, so that an interrupted build is never taken for a finished one.
"""

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from localcluster import paths
from localcluster.errors import LocalClusterError
from localcluster.locks import exclusive
from localcluster.progress import step
from localcluster.shell import run_logged

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager")
NODE = ("kube-scheduler", "kubelet", "kube-proxy", "kubectl", "coredns", "pause")
CLIENTS = ("helm", "kubeconform")


@dataclass(frozen=True, kw_only=True)
class GoModule:
    """A folder under `go/` with its go.mod. `requires` is the module whose version names the cache folder, if any."""

    folder: str
    requires: str = ""
    version_variable: str = ""

    @property
    def path(self) -> Path:
        """The folder of the module in this checkout."""
        return paths.source_folder() / "go" / self.folder

    @property
    def version(self) -> str:
        """The pinned version of the module that is built."""
        if not self.requires:
            return "own"
        return required_version((self.path / "go.mod").read_text(), self.requires)

    @property
    def linker_flags(self) -> str:
        """Without debug information, which halves the size; with the version, which the program prints."""
        stamp = f" -X {self.version_variable}={self.version}" if self.version_variable else ""
        return f"-s -w{stamp}"


KUBERNETES = GoModule(
    folder="kubernetes", requires="k8s.io/kubernetes", version_variable="k8s.io/component-base/version.gitVersion"
)
COREDNS = GoModule(folder="coredns", requires="github.com/coredns/coredns")
HELM = GoModule(folder="helm", requires="helm.sh/helm/v4", version_variable="helm.sh/helm/v4/internal/version.version")
KUBECONFORM = GoModule(folder="kubeconform", requires="github.com/yannh/kubeconform", version_variable="main.version")
PAUSE = GoModule(folder="pause")

PROGRAMS: dict[str, tuple[GoModule, str]] = {
    "etcd": (KUBERNETES, "go.etcd.io/etcd/server/v3"),
    **{
        name: (KUBERNETES, f"k8s.io/kubernetes/cmd/{name}")
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
    },
    "coredns": (COREDNS, "."),
    "pause": (PAUSE, "."),
    "helm": (HELM, "helm.sh/helm/v4/cmd/helm"),
    "kubeconform": (KUBECONFORM, "github.com/yannh/kubeconform/cmd/kubeconform"),
}


def required_version(go_mod: str, module: str) -> str:
    """The version of a module that a go.mod text requires."""
    found = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise LocalClusterError(f"The go.mod does not require {module}.")
    return found.group(1)


def program_folder(module: GoModule) -> Path:
    """Where the programs of a module are kept; another version, source or processor gives another folder."""
    digest = hashlib.sha256(f"{platform.machine()} {module.linker_flags}".encode())
    for source in sorted(module.path.glob("*")):
        digest.update(source.read_bytes())
    name = f"{module.folder}-{module.version}-{digest.hexdigest()[:12]}"
    return paths.cache_folder() / "programs" / name


def built(name: str) -> Path | None:
    """The path of a program in the cache, or None where it was not built yet."""
    path = program_folder(PROGRAMS[name][0]) / name
    return path if path.exists() else None


def ensure(names: Collection[str]) -> dict[str, Path]:
    """Build what is missing of the named programs and return where they are.

    kubectl is taken from KUBEBUILDER_ASSETS where that has one: a machine set up for such tests need not build it.
    Raises LocalClusterError where Go is missing or a build fails.
    """
    assets = {name: path for name, path in find_assets().items() if name == "kubectl" and name in names}
    wanted = [name for name in names if name not in assets]
    for module in dict.fromkeys(PROGRAMS[name][0] for name in wanted):
        if all(built(name) for name in wanted if PROGRAMS[name][0] is module):
            continue
        folder = program_folder(module)
        with exclusive(folder.with_name(f"{folder.name}.lock"), f"building programs of {module.folder}"):
            _build_missing(module, [name for name in wanted if PROGRAMS[name][0] is module], folder)
    return assets | {name: program_folder(PROGRAMS[name][0]) / name for name in wanted}


def _build_missing(module: GoModule, names: list[str], folder: Path) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    folder.mkdir(parents=True, exist_ok=True)
    # One at a time: the first ones may be used sooner, and an interruption loses at most one.
    for name in [name for name in names if not (folder / name).exists()]:
        if go is None:
            needed = (module.path / "go.mod").read_text().split("\ngo ", 1)[1].split()[0]
            raise LocalClusterError(
                f"Go {needed} or newer is needed to build {name}, and there is no `go` on PATH. Install it, or use "
                "CLUSTER=kind with a Docker engine, or set KUBEBUILDER_ASSETS for a control plane without a node."
            )
        package = PROGRAMS[name][1]
        with (
            step(f"building {name} from pinned Go modules (the first time takes minutes)"),
            tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as draft,
        ):
            target = Path(draft) / name
            run_logged(
                *(go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath"),
                *(f"-ldflags={module.linker_flags}", "-o", target, package),
                log=paths.cache_folder() / "logs" / f"build-{name}.log",
                cwd=module.path,
                env={"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOOS": "", "GOARCH": ""},
            )
            target.replace(folder / name)


def find_assets() -> dict[str, Path]:
    """The control plane programs in the folder of KUBEBUILDER_ASSETS; empty where that is not set.

    Raises LocalClusterError where the variable names a folder without etcd and kube-apiserver.
    """
    configured = os.environ.get("KUBEBUILDER_ASSETS")
    if not configured:
        return {}
    found = {
        name: Path(configured) / name for name in (*CONTROL_PLANE, "kubectl") if (Path(configured) / name).exists()
    }
    missing = {"etcd", "kube-apiserver"} - set(found)
    if missing:
        raise LocalClusterError(f"KUBEBUILDER_ASSETS={configured} has no {' and no '.join(sorted(missing))}.")
    return found
