"""The environment of a trainer's container: where services are, from the operator's configuration, and which keys of
which Secrets are read, from the schemes of the run's addresses. Secrets are named, never read."""

from collections.abc import Iterable, Iterator
from typing import Any

from lora_operator.model.config import OperatorConfig
from lora_operator.model.request import PodRequest
from lora_trainer.spec.config import Tracker, TrainConfig
from lora_trainer.spec.uri import HubUri, OciUri, S3Uri, Uri, parse_uri

CACHE_FOLDER = "/cache"
COMPILED_FOLDER = "/compiled"
CA_FOLDER = "/etc/lora-ca"
CA_FILE = "ca.crt"
DOCKER_CONFIG_KEY = ".dockerconfigjson"
RENDEZVOUS_PORT = 29400
_COMPILED = {
    "TRITON_CACHE_DIR": f"{COMPILED_FOLDER}/triton",
    "CUDA_CACHE_PATH": f"{COMPILED_FOLDER}/cuda",
    "CUDA_CACHE_MAXSIZE": str(2**30),
}
"""Where kernels go that are compiled on the node. CUDA alone can be given a limit; the others have the volume's."""
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
_S3_KEYS = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

Manifest = dict[str, Any]


def environment(
    pod: PodRequest, train: TrainConfig, config: OperatorConfig, *, trains: bool, rendezvous: str = ""
) -> list[Manifest]:
    """All variables of a container; what `trains` compiles kernels and writes to a tracker.

    `rendezvous` is host:port of several nodes.
    """
    compiled = _COMPILED if trains else {}
    plain = {"HOME": "/tmp", **compiled, **_services(train, config), **_defaults(pod)}  # noqa: S108 - an emptyDir
    if rendezvous:
        plain["LORA_RENDEZVOUS"] = rendezvous
    return [{"name": name, "value": value} for name, value in plain.items()] + list(_secrets(pod, train, trains=trains))


def _services(train: TrainConfig, config: OperatorConfig) -> dict[str, str]:
    grace = {"LORA_GRACE_SECONDS": str(config.termination_grace_s)}
    values = {"HF_HOME": CACHE_FOLDER, "HF_HUB_DISABLE_TELEMETRY": "1", **grace}
    if config.hub_endpoint:
        # The Hub's chunk store is another host, which a mirror of the Hub does not stand in for.
        values |= {"HF_ENDPOINT": config.hub_endpoint, "HF_HUB_DISABLE_XET": "1"}
    if config.offline:
        values["HF_HUB_OFFLINE"] = "1"
    optional = {"AWS_ENDPOINT_URL_S3": config.s3_endpoint, "AWS_REGION": config.s3_region}
    if config.ca_bundle_config_map:
        optional |= dict.fromkeys(_CA_VARIABLES, f"{CA_FOLDER}/{CA_FILE}")
    optional["LORA_OCI_PLAIN_HTTP"] = ",".join(config.oci_plain_http_registries)
    if train.tracking.kind is Tracker.MLFLOW:
        optional["MLFLOW_TRACKING_URI"] = config.mlflow_tracking_uri
    if train.tracking.kind is Tracker.WANDB:
        optional["WANDB_BASE_URL"] = config.wandb_base_url
    return values | {name: value for name, value in optional.items() if value}


def _defaults(pod: PodRequest) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in pod.environment.items():
        values |= _spelled(name, value)
    return values


def _spelled(name: str, value: str) -> dict[str, str]:
    """Of a proxy some libraries look for the one spelling only, some for the other."""
    return {name: value, name.lower(): value} if name.endswith("_PROXY") else {name: value}


def _secrets(pod: PodRequest, train: TrainConfig, *, trains: bool) -> Iterator[Manifest]:
    """Each purpose has its own variables: a run may read with one token and write with another.

    The output's address is tried with its credentials before the training; a tracker has no part in that.
    """
    data = [train.dataset.uri, *([train.dataset.validation_uri] if train.dataset.validation_uri else [])]
    yield from _access("MODEL", pod.model_secret, [train.model.uri])
    if pod.dataset_secret:
        yield from _access("DATASET", pod.dataset_secret, data)
    else:  # whoever may read the model there reads the rows with the same credentials
        place = type(parse_uri(train.model.uri))
        yield from _access("DATASET", pod.model_secret, [uri for uri in data if type(parse_uri(uri)) is place])
    yield from _access("OUTPUT", pod.output_secret, [train.output.uri])
    if not trains:
        return
    if pod.tracking_secret and train.tracking.kind is Tracker.WANDB:
        yield _reference("WANDB_API_KEY", pod.tracking_secret, "WANDB_API_KEY")
    if pod.tracking_secret and train.tracking.kind is Tracker.MLFLOW:
        yield from (_reference(key, pod.tracking_secret, key, optional=True) for key in _MLFLOW_KEYS)


def _access(purpose: str, secret: str | None, addresses: Iterable[str]) -> Iterator[Manifest]:
    """The keys that the schemes of these addresses need, each once."""
    if not secret:
        return
    kinds: set[type[Uri]] = {type(parse_uri(address)) for address in addresses}
    if HubUri in kinds:
        yield _reference(f"{purpose}_HF_TOKEN", secret, "HF_TOKEN")
    if S3Uri in kinds:
        for key, optional in _S3_KEYS.items():
            yield _reference(f"{purpose}_{key}", secret, key, optional=optional)
    if OciUri in kinds:
        yield _reference(f"{purpose}_DOCKER_CONFIG_JSON", secret, DOCKER_CONFIG_KEY)


def _reference(variable: str, secret: str, key: str, *, optional: bool = False) -> Manifest:
    reference: Manifest = {"name": secret, "key": key}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference | ({"optional": True} if optional else {})}}
