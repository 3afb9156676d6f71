"""Makes and deletes the volumes of the storage class `standard`: folders of the node that every user can write to.

Kubernetes' own hostPath provisioner makes folders that only root can enter, which is of no use to a pod that runs as
somebody else. kind brings a provisioner like this one in an image.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localcluster.api import ApiClient
from localcluster.errors import LocalClusterError
from localcluster.pki import KeyPair

PROVISIONER = "shipkeeper.dev/node-folder"
STORAGE_CLASS = "standard"
CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
PAUSE_SECONDS = 1.0

Object = dict[str, Any]


def storage_class() -> Object:
    """The default storage class of the cluster."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "volumeBindingMode": "Immediate",
    }


def wanting(claims: list[Object]) -> list[Object]:
    """The claims that wait for a volume of ours."""
    return [
        claim
        for claim in claims
        if claim["spec"].get("storageClassName") == STORAGE_CLASS
        and not claim["spec"].get("volumeName")
        and "deletionTimestamp" not in claim["metadata"]
    ]


def released(volumes: list[Object]) -> list[Object]:
    """The volumes of ours whose claims are gone."""
    return [
        volume
        for volume in volumes
        if volume["metadata"].get("annotations", {}).get(PROVISIONED_BY) == PROVISIONER
        and volume.get("status", {}).get("phase") == "Released"
        and volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
    ]


def volume_for(claim: Object, folder: Path) -> Object:
    """The volume for a claim, bound to it from the beginning."""
    metadata = claim["metadata"]
    name = f"pvc-{metadata['uid']}"
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": metadata["name"]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "claimRef": {**reference, "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "hostPath": {"path": str(folder / name), "type": "Directory"},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": STORAGE_CLASS,
        },
    }


def reconcile(client: ApiClient, folder: Path) -> None:
    """Make what claims wait for and delete what no claim holds any more."""
    for claim in wanting(client.list(CLAIMS)):
        volume = volume_for(claim, folder)
        path = Path(volume["spec"]["hostPath"]["path"])
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)
        client.apply(f"{VOLUMES}/{volume['metadata']['name']}", volume)
        print(f"made {path} for {claim['metadata']['namespace']}/{claim['metadata']['name']}", flush=True)
    for volume in released(client.list(VOLUMES)):
        name = volume["metadata"]["name"]
        shutil.rmtree(folder / name, ignore_errors=True)
        client.delete(f"{VOLUMES}/{name}")
        print(f"deleted {folder / name}", flush=True)


def run(client: ApiClient, folder: Path) -> None:
    """Reconcile whenever a claim or a volume changes; never returns."""
    changed = threading.Event()
    for path in (CLAIMS, VOLUMES):
        threading.Thread(target=_follow, args=(client, path, changed.set), daemon=True).start()
    while True:
        changed.wait()
        changed.clear()
        try:
            reconcile(client, folder)
        except LocalClusterError as error:
            print(error, flush=True)
            time.sleep(PAUSE_SECONDS)
            changed.set()


def _follow(client: ApiClient, path: str, changed: Callable[[], None]) -> None:
    while True:
        changed()
        try:
            for _ in client.watch(path):
                changed()
        except LocalClusterError as error:
            print(error, flush=True)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    address, port, authority, certificate, key, target = sys.argv[1:]
    pair = KeyPair(Path(key), Path(certificate))
    run(ApiClient(address=address, port=int(port), authority=Path(authority), client=pair), Path(target))
