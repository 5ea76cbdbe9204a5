"""The program beside Prometheus: `python3 -m monitoring.follow FOLDER [--once]`.

Every few seconds it reads monitors, rules and what they select, and writes what Prometheus reads. It is also the
receiver of Alertmanager's notifications, and writes each alert of them to its standard output as a line of JSON:

    {"status": "firing", "alertname": "LoRAFineTuneStalled", "severity": "warning", "namespace": "team", "name": "tone"}
"""

import argparse
import http.client
import json
import os
import sys
import threading
import time
import urllib.request
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from localcluster.api import Api, ApiError
from monitoring.configuration import Cluster, files

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MONITORING = "/apis/monitoring.coreos.com/v1"
_RELOAD = "http://127.0.0.1:9090/-/reload"
_RECEIVER = ("127.0.0.1", 8081)
_EVERY_S = 3.0


def main() -> None:
    """Follow the cluster for ever, or write the files once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    if options.once:
        write(options.folder)
        return
    server = ThreadingHTTPServer(_RECEIVER, Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    due = False
    while True:
        try:
            due = write(options.folder) or due
            if due:
                with urllib.request.urlopen(_RELOAD, data=b"", timeout=30):
                    due = False
        except (OSError, http.client.HTTPException, ApiError) as error:
            sys.stderr.write(f"tried again: {error}\n")
        time.sleep(_EVERY_S)


class Receiver(BaseHTTPRequestHandler):
    """Takes what Alertmanager's webhook sends."""

    def do_POST(self) -> None:
        """Write a line for each alert."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for alert in message["alerts"]:
            named = {label: alert["labels"].get(label, "") for label in ("alertname", "severity", "namespace", "name")}
            sys.stdout.write(json.dumps({"status": alert["status"], **named}) + "\n")
        sys.stdout.flush()
        self.send_response(HTTPStatus.OK)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Standard output has the alerts, and nothing else."""


def write(folder: Path) -> bool:
    """Write what has changed; returns whether Prometheus must be asked to read it. Raises as the API does."""
    found = files(read(), str(folder))
    for fault in found.faults:
        sys.stderr.write(f"left out: {fault}\n")
    wanted = {**found.settings, **found.targets}
    changed = {name for name, text in wanted.items() if not _has(folder / name, text)}
    for name in changed:
        new = folder / f".{name}"
        new.write_text(wanted[name])
        new.replace(folder / name)
    left_over = {path for path in folder.glob("*.json") if path.name not in wanted}
    for path in left_over:
        path.unlink()
    return bool(left_over or changed & found.settings.keys())


def read() -> Cluster:
    """What the API server has now. Raises OSError, HTTPException and ApiError."""
    api = Api(
        host=os.environ["KUBERNETES_SERVICE_HOST"],
        port=int(os.environ["KUBERNETES_SERVICE_PORT"]),
        ca_file=_ACCOUNT / "ca.crt",
        # The kubelet renews it.
        token=(_ACCOUNT / "token").read_text(),
    )
    return Cluster(
        monitors=[*_list(api, _MONITORING, "podmonitors"), *_list(api, _MONITORING, "servicemonitors")],
        rules=_list(api, _MONITORING, "prometheusrules"),
        pods=_list(api, "/api/v1", "pods"),
        services=_list(api, "/api/v1", "services"),
        endpoints=_list(api, "/api/v1", "endpoints"),
        nodes=_list(api, "/api/v1", "nodes"),
    )


def _list(api: Api, group: str, resource: str) -> list[dict[str, Any]]:
    """All objects of a resource, none where the cluster does not know it. In a list they do not tell their kind."""
    try:
        found = api.get(f"{group}/{resource}")
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return []
        raise
    kind = str(found["kind"]).removesuffix("List")
    return [{**item, "kind": kind} for item in found["items"]]


def _has(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


if __name__ == "__main__":
    main()
