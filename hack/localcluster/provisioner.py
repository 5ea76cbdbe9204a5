"""Makes a `local` volume for every claim of the storage class: `python3 -m localcluster.provisioner`.

A claim gets a folder of its own. `local` rather than `hostPath`, since the kubelet applies a pod's
fsGroup only to the former. The size of a claim is not enforced.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

from localcluster import pki, settings
from localcluster.api import Api, ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    Failures = Queue[BaseException]

CLASS = "local"
NAME = "lora-operator.io/local"
_PATH_ANNOTATION = "lora-operator.io/path"
_WATCH_S = 300


def storage_class() -> dict[str, Any]:
    """The default class; a claim is bound at once, since there is one node only."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": NAME,
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Delete",
    }


def volume_for(claim: dict[str, Any], volumes: Path) -> dict[str, Any] | None:
    """The PersistentVolume that a claim waits for, or None if the claim is not ours to serve."""
    meta, spec = claim["metadata"], claim["spec"]
    if spec.get("storageClassName") != CLASS or spec.get("volumeName") or meta.get("deletionTimestamp"):
        return None
    # The uid makes it a new folder even when a name comes back: old data never shows up in a new claim.
    path = volumes / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [settings.NODE_NAME]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{meta['uid']}",
            "annotations": {"pv.kubernetes.io/provisioned-by": NAME, _PATH_ANNOTATION: str(path)},
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": CLASS,
            "volumeMode": "Filesystem",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
            },
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
        },
    }


def folder_to_delete(volume: dict[str, Any], volumes: Path) -> Path | None:
    """The folder of a volume whose claim was deleted by its user, or None if it must stay."""
    annotations = volume["metadata"].get("annotations") or {}
    released = (volume.get("status") or {}).get("phase") == "Released"
    deleted = volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
    path = Path(annotations.get(_PATH_ANNOTATION, "/"))
    ours = annotations.get("pv.kubernetes.io/provisioned-by") == NAME and path.parent == volumes
    return path if ours and released and deleted else None


def provision(api: Api, claim: dict[str, Any], volumes: Path) -> None:
    volume = volume_for(claim, volumes)
    if volume is None:
        return
    # Owned by root, as a fresh disk is: a pod that is not root needs its fsGroup to write.
    Path(volume["spec"]["local"]["path"]).mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        api.post("/api/v1/persistentvolumes", volume)
    except ApiError as error:
        if error.status != 409:
            raise


def reclaim(api: Api, volume: dict[str, Any], volumes: Path) -> None:
    folder = folder_to_delete(volume, volumes)
    if folder is None:
        return
    try:
        api.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
    except ApiError as error:
        # Deleted by an earlier event of the same volume; the folder may still be there.
        if error.status != 404:
            raise
    shutil.rmtree(folder, ignore_errors=True)


def follow(collection: str, serve: Callable[[dict[str, Any]], None], api: Api, failures: Failures) -> None:
    """Serve every object of a collection, those of now and those to come; an error ends the program."""
    try:
        while True:
            listed = api.get(collection)
            for item in listed["items"]:
                serve(item)
            version = listed["metadata"]["resourceVersion"]
            for event in api.watch(f"{collection}?resourceVersion={version}", timeout_s=_WATCH_S):
                if event["type"] == "ERROR":
                    break
                if event["type"] != "DELETED":
                    serve(event["object"])
    except BaseException as error:
        failures.put(error)
        raise


def main() -> None:
    """Follow claims and volumes until one of both fails; the supervisor then starts this anew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pki", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--volumes", type=Path, required=True)
    options = parser.parse_args()
    volumes: Path = options.volumes
    api = Api(port=options.port, ca_file=options.pki / "ca.crt", token=pki.token(options.pki, "provisioner"))
    api.apply(f"/apis/storage.k8s.io/v1/storageclasses/{CLASS}", storage_class())
    failures: Failures = Queue()
    for collection, serve in (
        ("/api/v1/persistentvolumeclaims", lambda claim: provision(api, claim, volumes)),
        ("/api/v1/persistentvolumes", lambda volume: reclaim(api, volume, volumes)),
    ):
        threading.Thread(target=follow, args=(collection, serve, api, failures), daemon=True).start()
    sys.exit(f"{failures.get()!r}")


if __name__ == "__main__":
    main()
