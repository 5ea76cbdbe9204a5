"""Which cluster and namespace are meant: as kubectl reads the kubeconfig, which the Kubernetes library does not."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_client.errors import ClientError

if TYPE_CHECKING:
    from kubernetes.client import Configuration

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT_FILE = Path("~/.kube/config")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """`plugin` is the command that brings the user's credentials, empty where none does."""

    name: str
    namespace: str
    plugin: str


def configured(context: str | None) -> tuple["Configuration", str]:
    """How to reach the cluster of a context or, in a pod without a kubeconfig, the pod's own; and the namespace.

    Raises `ClientError`.
    """
    from kubernetes.client import Configuration  # noqa: PLC0415 - half a second, which help and completion do without

    configuration = Configuration()
    namespace = _load(configuration, context)
    if configuration.proxy:
        configuration.proxy_headers = _proxy_login(configuration.proxy)
    return configuration, namespace


def _load(configuration: "Configuration", context: str | None) -> str:
    """The namespace of the context, whose cluster is written into the configuration. Raises `ClientError`."""
    from kubernetes import config  # noqa: PLC0415 - as above

    # The library logs what fails while a token is fetched, and prints that where nobody takes it.
    logging.getLogger().addHandler(logging.NullHandler())
    # The library looks at the variable once, when it is imported, and takes an empty one for a file.
    named = os.environ.get("KUBECONFIG")
    file = named or str(_DEFAULT_FILE.expanduser())
    exists = any(Path(part).expanduser().is_file() for part in file.split(os.pathsep) if part)
    try:
        if not context and not named and not exists and (_ACCOUNT / "token").exists():
            config.load_incluster_config(client_configuration=configuration)
            return (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        if not exists:
            raise ClientError(f"There is no kubeconfig {file}: set KUBECONFIG to your cluster's, or copy that there")
        chosen = _chosen(file, context)
        with _Errors() as errors:
            config.load_kube_config(config_file=file, context=chosen.name, client_configuration=configuration)
        if errors.said and not configuration.api_key and configuration.cert_file is None:
            raise ClientError(
                f"The kubeconfig's credentials are not available ({_plugin_error(chosen.plugin, errors.said[-1])}): "
                "log in again, or install the plugin that it names"
            )
    except ClientError:
        raise
    except Exception as error:
        # Besides its own exception the library raises whatever a kubeconfig's odd content leads to.
        odd = isinstance(error, (AttributeError, KeyError, TypeError))
        why = "it holds something else" if odd else " ".join(str(error).split())[:200] or type(error).__name__
        raise ClientError(
            f"The kubeconfig {file} cannot be used ({why}): set KUBECONFIG to one that kubectl config view can read"
        ) from error
    return chosen.namespace


def _chosen(file: str, context: str | None) -> _Context:
    """The current context unless one is named. Raises `ClientError`, and what odd content leads to."""
    from kubernetes.config.kube_config import KubeConfigMerger  # noqa: PLC0415 - as above

    merged = KubeConfigMerger(file)
    contexts = {entry.value["name"]: entry.value.get("context") or {} for entry in merged.config.value["contexts"]}
    if context and context not in contexts:
        raise ClientError(f"There is no context {context}: kubectl config get-contexts lists those of the kubeconfig")
    # Of several files kubectl takes the first's current context, the library the last's.
    current = (merged.config_files[path].get("current-context") for path in merged.paths)
    name = context or next(filter(None, current), None)
    if name is None:
        raise ClientError(f"The kubeconfig {file} has no current context: name one with --context")
    content = contexts.get(name, {})
    users = {entry.value["name"]: entry.value.get("user") or {} for entry in merged.config.value["users"]}
    plugin = users.get(content.get("user"), {}).get("exec") or {}
    return _Context(
        name=name, namespace=str(content.get("namespace") or "default"), plugin=str(plugin.get("command") or "")
    )


class _Errors(logging.Handler):
    """What is logged as an error meanwhile, for a `with` statement: all that the library does about a plugin that
    fails."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def __enter__(self) -> "_Errors":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.said.append(record.getMessage())


def _plugin_error(plugin: str, said: str) -> str:
    """The plugin and what became of it. On a terminal it has said that itself, and the library trips over that."""
    tripped = said.startswith("'NoneType'")
    why = "it failed" if tripped else re.sub(r"^exec: |\[Errno \d+\] |: '[^']*'$", "", " ".join(said.split()))[:200]
    return f"{plugin}: {why}"


def _proxy_login(proxy: str) -> dict[str, str]:
    from urllib3.exceptions import LocationParseError  # noqa: PLC0415

    from lora_trainer.storage.network import proxy_login  # noqa: PLC0415 - as above

    try:
        return proxy_login(proxy)
    except LocationParseError:
        # Neither its text nor the exception itself, which show the password.
        raise ClientError(
            "The proxy's address cannot be read (HTTPS_PROXY, HTTP_PROXY, or proxy-url of the kubeconfig): write "
            "special characters of its password as in %23 for #"
        ) from None
