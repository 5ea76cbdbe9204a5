"""The volumes of a trainer's pod and where they are mounted: each claim once, writable only where the run writes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_operator.model.config import OperatorConfig
from lora_operator.model.names import CONFIG_ANNOTATION
from lora_operator.model.request import PodRequest
from lora_operator.render.environment import CA_FILE, CA_FOLDER, CACHE_FOLDER, COMPILED_FOLDER
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.template_fields import template_config_map
from lora_trainer.spec.uri import ClaimUri, ConfigMapUri, parse_uri

CONFIG_FOLDER = "/etc/lora"
CONFIG_FILE = "config.json"
CLAIMS_FOLDER = "/claims"
CONFIG_MAPS_FOLDER = "/configmaps"
SHARED_MEMORY = "1Gi"
COMPILED = "4Gi"
"""Most disk for compiled kernels, far above what those of a run take: a pod with more is evicted and tried again.
Temporary files have no such limit, for a result grows among them where there is no claim, as large as a model."""

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume and its place in the container."""

    name: str
    source: Manifest
    path: str
    writable: bool = False


def volumes(pod: PodRequest, train: TrainConfig, config: OperatorConfig, *, writes: bool) -> tuple[Volume, ...]:
    """All volumes of a pod of a run.

    One that does not train gets no claim to write to: it may run on another node, and a volume that its first pod binds
    to a node or a zone would be out of reach of the GPUs.
    """
    claims = _claims(train, writes=writes)
    memory = {"medium": "Memory", "sizeLimit": pod.shared_memory or SHARED_MEMORY}
    configuration = {"path": CONFIG_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{CONFIG_ANNOTATION}']"}}
    return (
        Volume(name="config", source={"downwardAPI": {"items": [configuration]}}, path=CONFIG_FOLDER),
        Volume(name="tmp", source={"emptyDir": {}}, path="/tmp", writable=True),  # noqa: S108 - an emptyDir
        *_cache(claims, pod.cache_claim),
        *_compiled(trains=writes),
        Volume(name="shared-memory", source={"emptyDir": memory}, path="/dev/shm", writable=True),  # noqa: S108 - as above
        *_claim_volumes(claims, pod.cache_claim),
        *_data_config_maps(train),
        *_ca_bundle(config),
    )


def as_manifests(volumes: tuple[Volume, ...]) -> tuple[list[Manifest], list[Manifest]]:
    """`volumes` of the pod, each once, and `volumeMounts` of the container."""
    sources = {volume.name: {"name": volume.name, **volume.source} for volume in volumes}
    mounts = [
        {"name": volume.name, "mountPath": volume.path, **({} if volume.writable else {"readOnly": True})}
        for volume in volumes
    ]
    return list(sources.values()), mounts


def _cache(claims: Mapping[str, bool], cache: str | None) -> Iterator[Volume]:
    """Models and data from afar: on the namespace's claim for them, or for the life of the pod."""
    if not cache:
        yield Volume(name="cache", source={"emptyDir": {}}, path=CACHE_FOLDER, writable=True)
        return
    yield Volume(
        name=_names(claims, cache)[cache],
        source=_claim(cache, writable=True),
        path=CACHE_FOLDER,
        writable=True,
    )


def _compiled(*, trains: bool) -> Iterator[Volume]:
    if trains:
        yield Volume(name="compiled", source={"emptyDir": {"sizeLimit": COMPILED}}, path=COMPILED_FOLDER, writable=True)


def _claim_volumes(claims: Mapping[str, bool], cache: str | None) -> Iterator[Volume]:
    volume_names = _names(claims, cache)
    for claim, writable in claims.items():
        # One volume for each claim: a pod that names a claim in two volumes may wait for the second for ever.
        source = _claim(claim, writable=writable or claim == cache)
        yield Volume(name=volume_names[claim], source=source, path=f"{CLAIMS_FOLDER}/{claim}", writable=writable)


def _names(claims: Mapping[str, bool], cache: str | None) -> Mapping[str, str]:
    names = {claim: f"claim-{index}" for index, claim in enumerate(claims)}
    return {cache: "cache", **names} if cache else names


def _claim(name: str, *, writable: bool) -> Manifest:
    """What is only read is also attached so, which a claim that is ReadOnlyMany insists on."""
    return {"persistentVolumeClaim": {"claimName": name, **({} if writable else {"readOnly": True})}}


def _claims(train: TrainConfig, *, writes: bool) -> Mapping[str, bool]:
    """Claims of the run, each once, in the order model, data, output, checkpoints; True where the run may write."""
    claims: dict[str, bool] = {}
    for address in (train.model.uri, train.dataset.uri, train.dataset.validation_uri):
        uri = parse_uri(address) if address else None
        if isinstance(uri, ClaimUri):
            claims[uri.claim] = False
    output = parse_uri(train.output.uri) if writes else None
    for claim in (output.claim if isinstance(output, ClaimUri) else None, checkpoint_claim(train) if writes else None):
        if claim is not None:
            claims[claim] = True
    return claims


def _data_config_maps(train: TrainConfig) -> Iterator[Volume]:
    """The keys that the run reads, and no other; rows and chat template may lie in one ConfigMap."""
    keys: dict[str, list[str]] = {}
    template = template_config_map(train.dataset.chat_template)
    for address in (train.dataset.uri, train.dataset.validation_uri, template):
        uri = parse_uri(address) if address else None
        if isinstance(uri, ConfigMapUri) and uri.key not in keys.setdefault(uri.name, []):
            keys[uri.name].append(uri.key)
    for index, (name, wanted) in enumerate(keys.items()):
        items = [{"key": key, "path": key} for key in wanted]
        source = {"configMap": {"name": name, "items": items}}
        volume = ("dataset", "validation", "chat-template")[index]
        yield Volume(name=volume, source=source, path=f"{CONFIG_MAPS_FOLDER}/{name}")


def _ca_bundle(config: OperatorConfig) -> Iterator[Volume]:
    if config.ca_bundle_config_map:
        items = [{"key": config.ca_bundle_key, "path": CA_FILE}]
        yield Volume(
            name="ca-bundle",
            source={"configMap": {"name": config.ca_bundle_config_map, "items": items}},
            path=CA_FOLDER,
        )
