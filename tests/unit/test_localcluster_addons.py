"""What else is installed into the local cluster: from which modules, in which order, and by charts that ask nobody."""

from pathlib import Path

import pytest
import yaml

from localcluster import addons, cli, client, prometheus_operator, settings, tools
from localcluster.client import Client, CommandError
from localcluster.console import Console
from localcluster.errors import ClusterError

CHART = """\
apiVersion: v2
name: kubeflow-trainer
dependencies:
- name: jobset
  repository: oci://registry.example/jobset/charts
  version: 0.10.1
  condition: jobset.install

keywords:
- kubernetes
"""
RELEASE = f"v{tools.PROMETHEUS_OPERATOR.version}"
UPSTREAM = f"""\
kind: ServiceAccount
metadata:
  name: prometheus-operator
  namespace: default
---
kind: Deployment
metadata:
  namespace: default
spec:
  args:
  - --kubelet-service=kube-system/kubelet
  - --prometheus-config-reloader=quay.io/prometheus-operator/prometheus-config-reloader:{RELEASE}
  image: quay.io/prometheus-operator/prometheus-operator:{RELEASE}
"""


def test_each_add_on_is_built_at_the_version_that_is_pinned() -> None:
    """And from the module of its name."""
    pinned = {name: (addon.tool.module, addon.tool.version) for name, addon in addons.ADDONS.items()}
    assert pinned == {
        "kueue": ("sigs.k8s.io/kueue", settings.KUEUE_VERSION),
        "jobset": ("sigs.k8s.io/jobset", settings.JOBSET_VERSION),
        "trainer": ("github.com/kubeflow/trainer/v2", settings.KUBEFLOW_TRAINER_VERSION),
        "kwok": ("sigs.k8s.io/kwok", settings.KWOK_VERSION),
    }
    for addon in addons.ADDONS.values():
        assert "{image}" in "".join(addon.values)
        assert "{tag}" in "".join(addon.values)


def test_a_chart_is_installed_without_those_that_it_would_fetch() -> None:
    """They come from the internet; here each is an add-on of its own."""
    assert yaml.safe_load(addons.without_dependencies(CHART)) == {
        "apiVersion": "v2",
        "name": "kubeflow-trainer",
        "keywords": ["kubernetes"],
    }
    assert addons.without_dependencies("name: kueue\n") == "name: kueue\n"


def test_an_add_on_that_needs_another_says_so_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence has the command."""

    def helm(self: Client, *arguments: str, stdin: str | None = None, timeout_s: float = 300) -> str:
        return "kueue\n"

    monkeypatch.setattr(Client, "helm", helm)
    with pytest.raises(ClusterError, match="trainer needs jobset: install it first with `hack/cluster addon jobset`"):
        addons.install("trainer", settings.places("none"), Console(), 5000)


def test_definitions_are_waited_for_until_their_kinds_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kubectl wait` fails on one that has no status yet."""
    asked = list[str]()

    def kubectl(self: Client, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        if arguments[0] == "wait":
            raise CommandError("error: .status.conditions accessor error: <nil> is of the type <nil>")
        asked.append(" ".join(arguments))
        return "pods\n" + "".join(f"{kind}.example.com\n" for kind in ("as", "bs")[: len(asked) - 2])

    monkeypatch.setattr(Client, "kubectl", kubectl)
    files = [Path(f"/example.com_{kind}.yaml") for kind in ("as", "bs")]
    client.local("none").define(*files)
    listing = "api-resources --output=name"
    assert asked == [f"apply --server-side --filename={files[0]} --filename={files[1]}", *[listing] * 3]
    asked.clear()
    with pytest.raises(ClusterError, match=r"does not serve bs\.example\.com within 0 s"):
        client.local("none").define(*files, timeout_s=0)


def test_an_unknown_add_on_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """By the parser, before the cluster is looked at."""
    with pytest.raises(SystemExit):
        cli.main(["addon", "istio"])
    assert "'kueue', 'jobset', 'trainer', 'kwok'" in capsys.readouterr().err


def test_the_prometheus_operator_runs_the_images_built_here_in_a_restricted_namespace_of_its_own() -> None:
    """Nothing is pulled from elsewhere or put into another namespace."""
    namespace, account, deployment = yaml.safe_load_all(prometheus_operator.manifests(UPSTREAM, "ours:1", "reloader:1"))
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert {made["metadata"]["namespace"] for made in (account, deployment)} == {namespace["metadata"]["name"]}
    args = ["--config-reloader-cpu-limit=0", "--prometheus-config-reloader=reloader:1"]
    assert deployment["spec"] == {"image": "ours:1", "args": args}


def test_other_manifests_of_the_prometheus_operator_are_refused() -> None:
    """Rather than installed with somebody else's image."""
    with pytest.raises(ClusterError, match=r"lack 'image: quay\.io/prometheus-operator/prometheus-operator:v"):
        prometheus_operator.manifests(UPSTREAM.replace("image: quay.io", "image: example.com"), "ours:1", "reloader:1")


def test_the_prometheus_of_the_prometheus_operator_has_the_release_of_its_module() -> None:
    """Go's modules have 0.310.2 for the release 3.10.2."""
    _, number, patch = tools.PROMETHEUS.version.split(".")
    major, minor = divmod(int(number), 100)
    assert f"{major}.{minor}.{patch}" == prometheus_operator.PROMETHEUS_RELEASE
