"""What a build on this machine needs to reach its package registries, and must not leave in the image.

A machine may stand behind a proxy or its own certificate authority and say so in pip's settings, in apt's and in its CA
bundle. They are mounted into builds, so no layer holds them.
"""

import configparser
import io
import os
import subprocess
from pathlib import Path

from localcluster import paths

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_SETTINGS = ("cert", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host")


def pip_configuration() -> str:
    """The machine's pip settings that a build needs, as the text of a pip.conf. Empty where there are none."""
    machine = configparser.ConfigParser(interpolation=None)
    machine.read([Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"])
    settings = dict(machine["global"]) if machine.has_section("global") else {}
    settings |= {name: os.environ[_variable(name)] for name in PIP_SETTINGS if _variable(name) in os.environ}
    wanted = {name: settings[name] for name in PIP_SETTINGS if name in settings}
    if "cert" in wanted:
        wanted["cert"] = str(CA_BUNDLE)  # The bundle's place in the build, wherever it lies on the machine.
    if not wanted:
        return ""
    document = configparser.ConfigParser(interpolation=None)
    document["global"] = wanted
    text = io.StringIO()
    document.write(text)
    return text.getvalue()


def _variable(name: str) -> str:
    return f"PIP_{name.upper().replace('-', '_')}"


def apt_configuration() -> str:
    """The machine's settings of apt's transports: proxies and certificates."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False).stdout
    lines = [line for line in dump.splitlines() if line.startswith(("Acquire::http", "Acquire::https"))]
    return "".join(f"{line}\n" for line in lines)


def ca_bundle() -> Path | None:
    """The machine's bundle of certificate authorities."""
    candidates = [Path(os.environ[name]) for name in ("PIP_CERT", "SSL_CERT_FILE") if os.environ.get(name)]
    return next((path for path in (*candidates, CA_BUNDLE) if path.is_file()), None)


def mounts() -> list[str]:
    """The `--volume` values of a build: read-only files over those of the image."""
    folder = paths.cache_folder() / "images" / "build-settings"
    found = []
    bundle = ca_bundle()
    if bundle:
        found.append(f"{bundle}:{CA_BUNDLE}:ro")
    for text, target in (
        (pip_configuration(), Path("/etc/pip.conf")),
        (apt_configuration(), Path("/etc/apt/apt.conf.d/90machine")),
    ):
        if text:
            source = folder / target.name
            paths.write_atomically(source, text, mode=0o644)
            found.append(f"{source}:{target}:ro")
    return found
