"""Where the API server is and how to prove who we are: one answer for our own requests and for kopf's."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import kopf
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.configuration import Configuration

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

USER_AGENT = "lora-operator"
_SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def _in_a_pod() -> bool:
    return not os.environ.get("KUBECONFIG") and _SERVICE_ACCOUNT_TOKEN.exists()


class LoginError(Exception):
    """There is no API server to talk to; the text is one sentence with the remedy."""


async def load_configuration(trace_configs: "Sequence[aiohttp.TraceConfig]" = ()) -> Configuration:
    """Read the kubeconfig that KUBECONFIG names, else the pod's service account, else ~/.kube/config.

    A service account's token is read anew every minute, because the cluster replaces it every hour.
    """
    configuration = Configuration()
    # Without it each request looks for a netrc in a thread; a proxy is set in the kubeconfig, not in the environment.
    configuration.client_session_kwargs = {"trust_env": False}
    # No limit: a watch holds its connection, so those of many namespaces would leave none for requests.
    configuration.connection_pool_maxsize = 0
    configuration.trace_configs = list(trace_configs)
    try:
        if _in_a_pod():
            kube_config.load_incluster_config(configuration)
        else:
            # The client looks at the variable once, when it is imported.
            file = os.environ.get("KUBECONFIG")
            await kube_config.load_kube_config(config_file=file, client_configuration=configuration)
    except (kube_config.ConfigException, OSError) as error:
        remedy = "run in a pod with a service account, or set KUBECONFIG to a kubeconfig file"
        raise LoginError(f"There is no way to reach a Kubernetes API server ({error}): {remedy}") from error
    return configuration


async def authorization(configuration: Configuration) -> str | None:
    """Value of the Authorization header, read anew where it may have changed; None where a certificate serves."""
    value = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    return str(value) if value else None


async def credentials() -> kopf.ConnectionInfo:
    """How kopf logs in: as our own client does. Raises `LoginError`."""
    configuration = await load_configuration()
    scheme, _, token = (await authorization(configuration) or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=None if configuration.ssl_ca_cert else configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme or None,
        token=token or None,
        proxy_url=configuration.proxy,
    )
