"""Where the local cluster keeps its files: nothing of it lies in the checkout.

Programs and images go to the user's cache folder (safe to delete while no cluster runs), the state of a cluster goes to
the user's state folder (`down` removes it).
"""

import os
from pathlib import Path

DEFAULT_CLUSTER = "shipkeeper"


def _user_folder(variable: str, fallback: str) -> Path:
    configured = os.environ.get(variable, "")
    # The XDG specification tells to ignore relative paths.
    return Path(configured) if configured.startswith("/") else Path.home() / fallback


def cache_folder() -> Path:
    """Where built programs and images are kept for every checkout of this user."""
    return _user_folder("XDG_CACHE_HOME", ".cache") / "shipkeeper"


def clusters_folder() -> Path:
    """Where each cluster has a folder with its state."""
    return _user_folder("XDG_STATE_HOME", ".local/state") / "shipkeeper" / "clusters"


def source_folder() -> Path:
    """`hack/localcluster` of this checkout: the Go modules and the Dockerfiles lie beside the package."""
    return Path(__file__).resolve().parent.parent


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file's content so that a reader sees the old text or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def last_lines(path: Path, count: int = 20) -> str:
    """The end of a log, for an error message. Empty where there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-count:])
