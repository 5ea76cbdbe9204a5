"""Which cluster, namespace and credentials a kubeconfig means: the same as to kubectl."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.login_proxy import LOGIN, login_proxy

from lora_client.cluster import kubeconfig as module
from lora_client.cluster.connection import UnreachableError, connect
from lora_client.cluster.process import Process
from lora_client.errors import ClientError

TOKEN = {"token": "t"}


def kubeconfig(path: Path, *, current: str | None = "own", user: dict[str, Any] = TOKEN) -> str:
    """One context, named after the file unless it is current, with a server of the file's name."""
    name = path.name
    document: dict[str, Any] = {
        "clusters": [{"name": name, "cluster": {"server": f"http://{name}.example"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": f"of-{name}"}}],
        "users": [{"name": name, "user": user}],
    }
    if current is not None:
        document["current-context"] = name if current == "own" else current
    path.write_text(yaml.safe_dump(document))
    return str(path)


def reached(context: str | None = None) -> tuple[str, str]:
    """The server and the namespace."""
    with connect(context) as cluster:
        return cluster.configuration.host, cluster.namespace


@pytest.fixture
def in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service account's token, and a home without a kubeconfig."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("t")
    (account / "namespace").write_text("of-the-pod")
    monkeypatch.setattr(module, "_ACCOUNT", account)
    monkeypatch.setattr(
        "kubernetes.config.load_incluster_config",
        lambda client_configuration: setattr(client_configuration, "host", "https://in.cluster"),
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)


@pytest.mark.parametrize(
    ("first", "want"), [("own", "prod"), (None, "dev"), ("", "dev")], ids=["both", "the second", "an empty one"]
)
def test_the_first_of_several_files_that_has_a_current_context_counts(
    first: str | None, want: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library takes the last one's."""
    files = [kubeconfig(tmp_path / "prod", current=first), kubeconfig(tmp_path / "dev")]
    monkeypatch.setenv("KUBECONFIG", ":".join(files))
    assert reached() == (f"http://{want}.example", f"of-{want}")
    assert reached("dev") == ("http://dev.example", "of-dev")


@pytest.mark.parametrize("current", [None, "", "gone"])
def test_a_context_that_is_named_needs_no_current_one(
    current: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that exists."""
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "dev", current=current))
    assert reached("dev") == ("http://dev.example", "of-dev")


@pytest.mark.parametrize("current", [None, ""])
def test_without_any_context_one_is_asked_for(
    current: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `kubectl config unset current-context`."""
    file = kubeconfig(tmp_path / "dev", current=current)
    monkeypatch.setenv("KUBECONFIG", file)
    with pytest.raises(ClientError, match=f"^The kubeconfig {file} has no current context: name one with --context$"):
        connect()


@pytest.mark.usefixtures("in_a_pod")
def test_a_pod_s_own_cluster_is_meant_where_there_is_no_kubeconfig() -> None:
    """And its namespace."""
    assert reached() == ("https://in.cluster", "of-the-pod")


@pytest.mark.usefixtures("in_a_pod")
def test_a_kubeconfig_counts_before_the_pod_s_own_cluster(tmp_path: Path) -> None:
    """As in a workspace in a cluster, from where one works on another."""
    (tmp_path / ".kube").mkdir()
    kubeconfig(tmp_path / ".kube" / "config")
    assert reached() == ("http://config.example", "of-config")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["no-such-plugin"], "no-such-plugin: No such file or directory"),
        (["sh", "-c", "echo Token has expired >&2; exit 255"], "sh: process returned 255. Token has expired"),
        (["sh", "-c", "echo hello"], "sh: failed to decode process output"),
    ],
    ids=["missing", "failed", "odd"],
)
def test_a_plugin_that_brings_no_credentials_is_named(
    command: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nobody is sent to an administrator for a right that anonymous requests lack."""
    version = "client.authentication.k8s.io/v1"
    plugin = {"apiVersion": version, "command": command[0], "args": command[1:], "interactiveMode": "IfAvailable"}
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "dev", user={"exec": plugin}))
    with pytest.raises(ClientError) as failure:
        connect()
    assert str(failure.value).startswith(f"The kubeconfig's credentials are not available ({why}")
    assert str(failure.value).endswith("): log in again, or install the plugin that it names")
    assert capsys.readouterr() == ("", "")


def test_a_plugin_that_fails_on_a_terminal_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There its own words have been seen, and the library trips over having none."""
    version = "client.authentication.k8s.io/v1"
    plugin = {"apiVersion": version, "command": "false", "interactiveMode": "IfAvailable"}
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "dev", user={"exec": plugin}))
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        monkeypatch.setattr("sys.stderr", nothing)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        with pytest.raises(ClientError, match=r"are not available \(false: it failed\): log in again"):
            connect()


def test_a_proxy_gets_the_login_of_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For requests, and for what runs in a pod."""
    with login_proxy() as (address, answers):
        file = Path(kubeconfig(tmp_path / "dev"))
        document = yaml.safe_load(file.read_text())
        document["clusters"][0]["cluster"]["proxy-url"] = f"http://{LOGIN}@{address}"
        file.write_text(yaml.safe_dump(document))
        monkeypatch.setenv("KUBECONFIG", str(file))
        with connect() as cluster:
            with pytest.raises(UnreachableError, match="which no API server does"):  # it is the server, too
                cluster.request("GET", "/version")
            cluster.configuration.host = "https://dev.example"
            with pytest.raises(ClientError, match="502") as failure:
                Process(cluster, "tone-ask-1", "lora", ["python3"])
    assert answers == [("GET", True), ("CONNECT", True)]
    assert "cret" not in str(failure.value)


def test_a_proxy_s_address_that_is_none_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold a password, and often is none for that."""
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "dev"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://bob:s#cret@proxy.example")
    with pytest.raises(ClientError) as failure:
        connect()
    assert str(failure.value) == (
        "The proxy's address cannot be read (HTTPS_PROXY, HTTP_PROXY, or proxy-url of the kubeconfig): write special "
        "characters of its password as in %23 for #"
    )
