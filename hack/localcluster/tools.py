"""Kubernetes, etcd, Helm and CoreDNS, built from Go modules once per version."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster import settings
from localcluster.attempts import twice
from localcluster.errors import ClusterError
from localcluster.go import check_go
from localcluster.processes import locked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localcluster.console import Console

_KUBERNETES = "k8s.io/kubernetes"
_KUBERNETES_COMMANDS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
    "kube-proxy",
)
_MAJOR_VERSION = re.compile(r"/v[0-9]+$")
_HELM_STAMPED = {"3": ("lint/rules", "chartutil"), "4": ("chart/v2/lint/rules", "chart/common")}
_STAGING_MODULE = re.compile(r"^\t(k8s\.io/[a-z-]+) v0\.0\.0$", re.MULTILINE)
_REQUIREMENT = re.compile(r"^\t(\S+) (v\S+)(?: // indirect)?$", re.MULTILINE)
# What the Corefile of the local cluster names.
COREDNS_PLUGINS = ("bind", "cache", "errors", "kubernetes", "template")
# coredns' own command has every plugin, with the client libraries of several clouds: minutes to compile.
_COREDNS_MAIN = """\
package main

import (
\t"github.com/coredns/coredns/coremain"
{plugins})

func main() {{ coremain.Run() }}
"""
# cosign's own command has the client libraries of four clouds' key stores.
_COSIGN_MAIN = """\
package main

import (
\t"os"

\t"github.com/sigstore/cosign/v3/cmd/cosign/cli"
)

func main() {
\tif cli.New().Execute() != nil {
\t\tos.Exit(1)
\t}
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """Commands built from one Go module at one version.

    `source` is a main package of our own over the module's packages, in the place of one of the module's.
    `tags` choose parts of it. `kubernetes` is the version of Kubernetes whose libraries it is built with, where these
    are not its own: after Kubernetes they are compiled already. `own` are the modules that keep the version which the
    tool asks for.
    """

    name: str
    module: str
    version: str
    packages: tuple[str, ...]
    linker_flags: str = "-s -w"
    source: str = ""
    tags: tuple[str, ...] = ()
    kubernetes: str = ""
    own: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Folder name in the cache; it changes with anything that changes the binaries."""
        parts = [self.module, self.version, self.packages, self.linker_flags]
        recipe = json.dumps([*parts, *filter(None, (self.source, self.tags, self.kubernetes, self.own))])
        return f"{self.name}-{self.version}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"

    @property
    def commands(self) -> tuple[str, ...]:
        """Names of the binaries: Go passes over a major version at the end of a package's path."""
        return tuple(_MAJOR_VERSION.sub("", package).rsplit("/", 1)[-1] for package in self.packages)


def kubernetes(version: str = settings.KUBERNETES_VERSION) -> Tool:
    major, minor, _ = version.split(".")
    stamp = "k8s.io/component-base/version"
    return Tool(
        name="kubernetes",
        module=_KUBERNETES,
        version=version,
        packages=tuple(f"{_KUBERNETES}/cmd/{command}" for command in _KUBERNETES_COMMANDS),
        linker_flags=f"-s -w -X {stamp}.gitVersion=v{version} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}",
    )


def helm(version: str = settings.HELM_VERSION) -> Tool:
    release = version.partition(".")[0]
    module = f"helm.sh/helm/v{release}"
    major, minor, _ = settings.KUBERNETES_VERSION.split(".")
    # Without them `helm template` and `helm lint` take Kubernetes for 1.20.
    stamps = [
        f"-X {module}/pkg/{package}.k8sVersion{part}={value}"
        for package in _HELM_STAMPED[release]
        for part, value in (("Major", major), ("Minor", minor))
    ]
    return Tool(
        name="helm" if release == "3" else f"helm{release}",
        module=module,
        version=version,
        packages=(f"{module}/cmd/helm",),
        linker_flags=" ".join(["-s -w", f"-X {module}/internal/version.version=v{version}", *stamps]),
        kubernetes=settings.KUBERNETES_VERSION,
        # It calls what is newer than the version of Kubernetes.
        own=("github.com/spf13/pflag",),
    )


HELM = helm()
HELM4 = helm(settings.HELM4_VERSION)
"""The chart's tests run under both."""
ETCD = Tool(
    name="etcd",
    module="go.etcd.io/etcd/server/v3",
    version=settings.ETCD_VERSION,
    packages=("go.etcd.io/etcd/server/v3",),
    kubernetes=settings.KUBERNETES_VERSION,
    own=("go.etcd.io/",),
)
COREDNS = Tool(
    name="coredns",
    module="github.com/coredns/coredns",
    version=settings.COREDNS_VERSION,
    packages=("localcluster/coredns",),
    source=_COREDNS_MAIN.format(
        plugins="".join(f'\t_ "github.com/coredns/coredns/plugin/{name}"\n' for name in COREDNS_PLUGINS)
    ),
    kubernetes=settings.KUBERNETES_VERSION,
    own=("github.com/coredns/",),
)
VERSITYGW = Tool(
    name="versitygw",
    module="github.com/versity/versitygw",
    version=settings.VERSITYGW_VERSION,
    packages=("github.com/versity/versitygw/cmd/versitygw",),
)
"""An S3 server over a folder: no part of the cluster, the tests' bucket."""
KUEUE = Tool(
    name="kueue",
    module="sigs.k8s.io/kueue",
    version=settings.KUEUE_VERSION,
    packages=("sigs.k8s.io/kueue/cmd/kueue",),
)
JOBSET = Tool(
    name="jobset",
    module="sigs.k8s.io/jobset",
    version=settings.JOBSET_VERSION,
    packages=("sigs.k8s.io/jobset",),
)
KUBEFLOW_TRAINER = Tool(
    name="trainer",
    module="github.com/kubeflow/trainer/v2",
    version=settings.KUBEFLOW_TRAINER_VERSION,
    packages=("github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",),
)
KWOK = Tool(
    name="kwok",
    module="sigs.k8s.io/kwok",
    version=settings.KWOK_VERSION,
    packages=("sigs.k8s.io/kwok/cmd/kwok",),
)
"""Plays nodes and their kubelets: a process on the host, beside any cluster."""
PROMETHEUS_OPERATOR = Tool(
    name="prometheus-operator",
    module="github.com/prometheus-operator/prometheus-operator",
    version=settings.PROMETHEUS_OPERATOR_VERSION,
    packages=tuple(
        f"github.com/prometheus-operator/prometheus-operator/cmd/{command}"
        for command in ("operator", "prometheus-config-reloader")
    ),
    kubernetes=settings.KUBERNETES_VERSION,
    own=("go.opentelemetry.io/", "github.com/prometheus/"),
)
"""Its definitions, which the chart's monitors are held against; its programs only in `make soak`."""
PROMETHEUS = Tool(
    name="prometheus",
    module="github.com/prometheus/prometheus",
    version=settings.PROMETHEUS_VERSION,
    packages=("github.com/prometheus/prometheus/cmd/prometheus",),
    # Else with the client libraries of twenty clouds.
    tags=("remove_all_sd", "enable_kubernetes_sd"),
    kubernetes=settings.KUBERNETES_VERSION,
    own=("go.opentelemetry.io/", "github.com/prometheus/"),
)
"""One that finds targets in Kubernetes by itself, which Debian's does not; without pages. Only in `make soak`."""
ENFORCER = Tool(
    name="enforcer",
    module="sigs.k8s.io/kube-network-policies",
    version=settings.KUBE_NETWORK_POLICIES_VERSION,
    packages=("localcluster/enforcer",),
    source=(Path(__file__).parent / "enforcer" / "main.go").read_text(encoding="utf-8"),
    kubernetes=settings.KUBERNETES_VERSION,
)
"""The reference implementation of network policies, without a cluster."""
COSIGN = Tool(
    name="cosign",
    module="github.com/sigstore/cosign/v3",
    version=settings.COSIGN_VERSION,
    packages=("localcluster/cosign",),
    source=_COSIGN_MAIN,
)
"""Signs releases, with keys in files and without keys."""
ORAS = Tool(
    name="oras",
    module="oras.land/oras",
    version=settings.ORAS_VERSION,
    packages=("oras.land/oras/cmd/oras",),
)
"""Copies releases, with what refers to them, to a registry."""
SERVERS = (VERSITYGW, KUEUE, HELM4, ENFORCER)
"""What tests need beside the cluster's own parts."""


def available() -> dict[str, Tool]:
    """What the full cluster needs."""
    return {tool.name: tool for tool in (kubernetes(), HELM, COREDNS, ETCD)}


def folder(tool: Tool, cache: Path) -> Path:
    """Where the finished binaries are; it exists only when they are complete."""
    return cache / "tools" / tool.key


def ensure(tool: Tool, cache: Path, console: Console) -> Path:
    """Build the tool unless this version is in the cache; returns the folder of its binaries."""
    done = folder(tool, cache)
    if done.is_dir():
        return done
    with locked(done.with_name(f"{tool.name}.lock"), waiting=console.say):
        if done.is_dir():
            return done
        check_go()
        work = done.with_name(f".building-{tool.name}")
        shutil.rmtree(work, ignore_errors=True)
        (work / "bin").mkdir(parents=True)
        log = done.with_name(f"{tool.name}.log")
        log.unlink(missing_ok=True)
        with console.step(f"build {tool.name} {tool.version} from its Go module", log=log):
            twice(lambda: _build(tool, work, log), console)
        (work / "bin").rename(done)
        shutil.rmtree(work)
    return done


def ensure_all(wanted: Iterable[Tool], cache: Path, console: Console) -> None:
    """Build what is missing, two at a time: while one is downloaded or linked, the other is compiled.

    Kubernetes comes before the tools that are built with its libraries.
    """
    missing = [tool for tool in wanted if not folder(tool, cache).is_dir()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        for with_libraries in (False, True):
            chosen = [tool for tool in missing if bool(tool.kubernetes) is with_libraries]
            for built in [pool.submit(ensure, tool, cache, console) for tool in chosen]:
                built.result()


def module_folder(tool: Tool, cache: Path) -> Path:
    """The sources of the tool's Go module, read-only, in Go's module cache: charts lie there too."""
    log = folder(tool, cache).with_name(f"{tool.name}-module.log")
    described = _go(["mod", "download", "-json", f"{tool.module}@v{tool.version}"], log.parent, log)
    return Path(json.loads(described)["Dir"])


def _build(tool: Tool, work: Path, log: Path) -> None:
    _lay_out(tool, work, log)
    # -v names each package as it is compiled: the step's live detail. No -trimpath: Go would compile a library anew for
    # each tool that requires another version of it, though all of them get the one that Kubernetes requires.
    flags = ["-v", "-mod=mod", f"-tags={','.join(tool.tags)}", "-ldflags", tool.linker_flags, "-o", "bin/"]
    _go(["build", *flags, *tool.packages], work, log)


def _lay_out(tool: Tool, work: Path, log: Path) -> None:
    """Write a module that requires the tool's; Go adds, and downloads, what the tool's packages import and no more."""
    if tool.module == _KUBERNETES:
        text = kubernetes_module(tool, _upstream_go_mod(tool.version, work, log))
    else:
        text = module_beside_kubernetes(tool, _upstream_go_mod(tool.kubernetes, work, log) if tool.kubernetes else "")
    (work / "go.mod").write_text(text)
    if tool.source:
        (work / "main.go").write_text(tool.source)


def _upstream_go_mod(version: str, work: Path, log: Path) -> str:
    """The go.mod of a release of Kubernetes."""
    described = _go(["mod", "download", "-json", f"{_KUBERNETES}@v{version}"], work, log)
    return Path(json.loads(described)["GoMod"]).read_text()


def module_beside_kubernetes(tool: Tool, upstream_go_mod: str) -> str:
    """A go.mod that builds a tool; what Kubernetes requires too has the version that Kubernetes requires."""
    staging = f"v0.{tool.kubernetes.removeprefix('1.')}"
    pinned = [
        f"\t{module} => {module} {staging if version == 'v0.0.0' else version}"
        for module, version in _REQUIREMENT.findall(upstream_go_mod)
        if not module.startswith(tool.own)
    ]
    lines = [
        f"module localcluster/{tool.name}",
        "",
        "go 1.24.0",
        "",
        f"require {tool.module} v{tool.version}",
        "",
        "replace (",
        *pinned,
        ")",
        "",
    ]
    return "\n".join(lines)


def kubernetes_module(tool: Tool, upstream_go_mod: str) -> str:
    """A go.mod that builds Kubernetes outside of its repository.

    Upstream requires its staging modules at v0.0.0 and replaces them by folders of the repository;
    here each is replaced by the version published for the release (v0.34.4 for 1.34.4).
    """
    staging = f"v0.{tool.version.removeprefix('1.')}"
    replaced = _STAGING_MODULE.findall(upstream_go_mod)
    lines = [
        "module localcluster/kubernetes",
        "",
        "go 1.24.0",
        "",
        "godebug default=go1.24",
        "",
        f"require {tool.module} v{tool.version}",
        "",
        "replace (",
        *(f"\t{module} => {module} {staging}" for module in replaced),
        ")",
        "",
    ]
    return "\n".join(lines)


def _go(arguments: Sequence[str], work: Path, log: Path) -> str:
    """Run the go command with the user's own settings (GOPROXY, GOFLAGS, ...) and log what it says."""
    environment = {**os.environ, "CGO_ENABLED": "0"}
    with log.open("ab") as output:
        done = subprocess.run(
            ["go", *arguments], cwd=work, env=environment, stdout=subprocess.PIPE, stderr=output, check=False
        )
    if done.returncode != 0:
        raise ClusterError(f"`go {' '.join(arguments[:2])}` failed; the Go tools say why.", log=log)
    return done.stdout.decode()
