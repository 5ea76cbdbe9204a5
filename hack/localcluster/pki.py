"""Certificates and tokens of one cluster, made by openssl, and the kubeconfig files that hold them."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
from typing import TYPE_CHECKING

from localcluster import settings
from localcluster.errors import ClusterError
from localcluster.processes import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

_DAYS = "3650"
# As whom the API server passes requests on to those that serve further APIs, such as Kueue's of pending workloads.
FRONT_PROXY = "front-proxy-client"
_NODE_USER = f"system:node:{settings.NODE_NAME}"
# file name of the kubeconfig -> (user, group)
USERS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", "system:node-proxier"),
    "kubelet": (_NODE_USER, "system:nodes"),
    "coredns": ("localcluster:coredns", "system:masters"),
    "provisioner": ("localcluster:provisioner", "system:masters"),
}


def ensure(directory: Path) -> None:
    """Make everything once; an interrupted attempt leaves nothing that looks complete."""
    if directory.is_dir():
        return
    work = directory.with_name(".pki.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, mode=0o700)
    _authority(work)
    _certificate(
        work,
        "apiserver",
        "/CN=kube-apiserver",
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,"
        f"DNS:localhost,IP:127.0.0.1,IP:{settings.KUBERNETES_SERVICE_IP},IP:{settings.NODE_IP}",
    )
    _certificate(work, "apiserver-kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client", "DNS:apiserver")
    _certificate(work, "front-proxy-client", f"/CN={FRONT_PROXY}", f"DNS:{FRONT_PROXY}")
    _certificate(work, "kubelet", f"/O=system:nodes/CN={_NODE_USER}", f"DNS:{settings.NODE_NAME},IP:{settings.NODE_IP}")
    _openssl(work, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "service-account.key")
    _openssl(work, "ec", "-in", "service-account.key", "-pubout", "-out", "service-account.pub")
    tokens = {name: secrets.token_hex(24) for name in USERS}
    write_atomically(work / "tokens.csv", token_file(tokens), 0o600)
    write_atomically(work / "tokens.json", json.dumps(tokens), 0o600)
    work.rename(directory)


def token_file(tokens: dict[str, str]) -> str:
    """The API server's static token file: token, user, uid, groups."""
    return "".join(f'{tokens[name]},{user},{user},"{group}"\n' for name, (user, group) in USERS.items())


def token(directory: Path, name: str) -> str:
    return str(json.loads((directory / "tokens.json").read_text())[name])


def kubeconfig(*, directory: Path, name: str, port: int, context: str) -> str:
    """A kubeconfig (YAML) for one of USERS that reaches the API server at 127.0.0.1:port."""
    authority = base64.b64encode((directory / "ca.crt").read_bytes()).decode()
    return f"""\
apiVersion: v1
kind: Config
current-context: {context}
clusters:
  - name: {context}
    cluster: {{server: "https://127.0.0.1:{port}", certificate-authority-data: {authority}}}
users:
  - name: {context}-{name}
    user: {{token: "{token(directory, name)}"}}
contexts:
  - name: {context}
    context: {{cluster: {context}, user: {context}-{name}}}
"""


def _authority(work: Path) -> None:
    _openssl(
        work,
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=localcluster", "-days", _DAYS),
    )


def _certificate(work: Path, name: str, subject: str, alternative_names: str) -> None:
    extensions = work / f"{name}.ext"
    extensions.write_text(f"subjectAltName={alternative_names}\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl(
        work,
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject),
    )
    _openssl(
        work,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", _DAYS, "-out", f"{name}.crt", "-extfile", extensions.name),
    )


def _openssl(work: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=work, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(f"openssl {arguments[0]} failed: {reason}")
