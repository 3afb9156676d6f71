"""Writes kubeconfig files."""

import base64
import json
from pathlib import Path

from localcluster.paths import write_atomically
from localcluster.pki import KeyPair


def write_kubeconfig(path: Path, *, name: str, server: str, authority: Path, client: KeyPair) -> None:
    """Write a kubeconfig with everything inside it, readable by its owner alone. JSON is YAML."""

    def data(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": data(authority)}}],
        "users": [
            {
                "name": name,
                "user": {"client-certificate-data": data(client.certificate), "client-key-data": data(client.key)},
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    write_atomically(path, json.dumps(document, indent=2) + "\n")
