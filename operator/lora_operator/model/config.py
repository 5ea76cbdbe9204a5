"""Operator configuration: one YAML file, rendered by the chart; an unknown key is an error at start."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lora_trainer.spec import codec
from lora_trainer.spec.device_section import GpuSetting
from lora_trainer.spec.resource import LARGEST_GPU_GIB

NOT_TO_BE_MOVED = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""Annotations by which Karpenter and the cluster autoscaler leave a pod on its node until it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """Settings of the operator; in YAML the same names in camelCase. All durations are seconds.

    namespaces              watched namespaces; empty means all
    trainer_image           image of the training pods
    preflight_image         image of the pods that look at a run beforehand; empty: the same
    hub_endpoint            base URL of the Hugging Face Hub; empty means the client's own default
    offline                 the Hub is not asked at all: what is not in the cache or on a volume is missing
    s3_endpoint, -region    of the object store; empty means AWS, and the region that the client finds
    ca_bundle_config_map    ConfigMap with a CA bundle, in each namespace with runs; empty: the image's own bundle
    ca_bundle_key           the bundle's key there, as ca-bundle.crt where OpenShift injects the cluster's
    oci_plain_http_registries   host:port of registries that speak HTTP without TLS
    mlflow_tracking_uri, wandb_base_url   servers of the trackers
    cache_claim             claim, in each namespace with runs, that keeps models and data; empty: a folder of the pod
    run_as_user, -group, fs_group   of those pods; 0 leaves one to the platform, which then assigns it
    pod_annotations         of the pods of runs; the default ones keep autoscalers from moving them to save nodes
    preflight_cpu, -memory  requests of those pods, which also fill that claim; the memory is their limit too
    preflight_node_selector nodes of those pods, instead of those that their runs would send them to
    preflight_tolerations   of those pods, beside those of their runs: key, operator, value, effect
    require_rendered_image  a success counts only from a pod with the very image that the operator wrote into its Job
    stall_timeout_s         a training without a step for so long is stopped and started again
    gpus                    the cluster's GPUs: product or resource, memory in GiB, price of an hour
    allow_cpu               a pod that was given a GPU and sees none trains on the CPU instead of failing (demo, tests)
    default_cpu_per_gpu, -memory-   requests of a training pod whose resource names none; empty: as defaults.py has it
    default_...             what else a run gets where its resource names none; defaults.py has how long it keeps it
    run_metrics             a set of series for each LoRAFineTune, beside those of the operator
    progress_interval_s     how often a running pod is asked for its progress, and the status written
    status_delay_s          how long a status waits for more, unless it ends the run or counts something
    pending_check_s         how often at most the Events of a namespace are read, in which runs wait
    resync_interval_s       how often everything is listed anew
    watch_inactivity_s      a watch that is silent for so long is restarted; the API server speaks once a minute
    retry_base_s, -max_s    delays between attempts at a reconcile that failed
    lease_name, -namespace  of the Lease whose holder works; an empty namespace means the operator's own
    lease_duration_s        a Lease that was not renewed for so long is taken over
    renew_deadline_s        a leader that could not renew its Lease for so long ends its process
    retry_period_s          how often the Lease is renewed, or looked at by those that stand by
    """

    trainer_image: str
    preflight_image: str = ""
    namespaces: tuple[str, ...] = ()
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    trainer_service_account_name: str = ""
    run_as_user: int = 10001
    run_as_group: int = 10001
    fs_group: int = 10001
    pod_annotations: Mapping[str, str] = field(default_factory=lambda: dict(NOT_TO_BE_MOVED))
    hub_endpoint: str = ""
    offline: bool = False
    s3_endpoint: str = ""
    s3_region: str = ""
    ca_bundle_config_map: str = ""
    ca_bundle_key: str = "ca.crt"
    oci_plain_http_registries: tuple[str, ...] = ()
    mlflow_tracking_uri: str = ""
    wandb_base_url: str = ""
    cache_claim: str = ""
    preflight_cpu: str = "1"
    preflight_memory: str = "2Gi"
    preflight_node_selector: Mapping[str, str] = field(default_factory=dict)
    preflight_tolerations: tuple[Mapping[str, str], ...] = ()
    require_rendered_image: bool = False
    stall_timeout_s: int = 1800
    gpus: tuple[GpuSetting, ...] = ()
    allow_cpu: bool = False
    default_cpu_per_gpu: str = ""
    default_memory_per_gpu: str = ""
    default_gpu_resource_name: str = "nvidia.com/gpu"
    default_node_selector: Mapping[str, str] = field(default_factory=dict)
    default_tolerations: tuple[Mapping[str, str], ...] = ()
    default_affinity: Mapping[str, Any] = field(default_factory=dict)
    default_runtime_class_name: str = ""
    default_priority_class_name: str = ""
    default_queue: str = ""
    default_ttl_s: int | None = None
    default_environment: Mapping[str, str] = field(default_factory=dict)
    default_checkpoint_claim: str = ""
    termination_grace_s: int = 120
    run_metrics: bool = True
    progress_interval_s: float = 15.0
    progress_timeout_s: float = 2.0
    status_delay_s: float = 2.0
    pending_check_s: float = 10.0
    resync_interval_s: float = 300.0
    watch_inactivity_s: float = 70.0
    retry_base_s: float = 1.0
    retry_max_s: float = 60.0
    lease_name: str = "lora-operator"
    lease_namespace: str = ""
    lease_duration_s: int = 15
    renew_deadline_s: float = 10.0
    retry_period_s: float = 2.0
    workers: int = 16
    http_port: int = 8080
    log_level: str = "INFO"
    log_format: str = "text"


def load_config(path: Path) -> OperatorConfig:
    """Read a configuration file. Raises `codec.CodecError` with the key, the value and the rule."""
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise codec.CodecError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise codec.CodecError(f"{path} must hold a map of settings")
    try:
        values = {_field_name(str(key)): value for key, value in document.items()}
        if isinstance(values.get("gpus"), list):
            values["gpus"] = [_gpu(gpu) for gpu in values["gpus"]]
        config = codec.decode(OperatorConfig, values, path.name)
    except codec.CodecError as error:
        raise codec.CodecError(_in_yaml_names(str(error))) from error
    for name in OperatorConfig.__dataclass_fields__:
        rule = _broken_rule(name, getattr(config, name))
        if rule:
            shown = _shown(name, getattr(config, name))
            raise codec.CodecError(f"{path.name}.{yaml_name(name)} is {shown}: must be {rule}")
    for shorter, longer in ORDERED:
        if getattr(config, shorter) >= getattr(config, longer):
            rule = f"below {yaml_name(longer)}, which is {getattr(config, longer)!r}"
            raise codec.CodecError(f"{path.name}.{yaml_name(shorter)} is {getattr(config, shorter)!r}: must be {rule}")
    return config


_GPU_NAMES = {"memoryGiB": "memory_gib", "pricePerHour": "price"}
MOST_GPUS = 64
MOST_DEFAULTS = 32
LONGEST_TTL_S = 31_536_000
TOLERATION_KEYS = frozenset({"key", "operator", "value", "effect"})


def _gpu(document: object) -> object:
    """A GPU with the fields' names as of its dataclass; what is none is left to the codec."""
    if not isinstance(document, dict):
        return document
    return {_GPU_NAMES.get(str(key), str(key)): value for key, value in document.items()}


def _broken_gpus(gpus: tuple[GpuSetting, ...]) -> str:
    names = [gpu.name.lower() for gpu in gpus]
    sound = all(
        1 <= len(gpu.name) <= 253
        and 1 <= gpu.memory_gib <= LARGEST_GPU_GIB
        and (gpu.price is None or 0 <= gpu.price < 1_000_000)
        for gpu in gpus
    )
    if sound and len(gpus) <= MOST_GPUS and len(set(names)) == len(names):
        return ""
    return (
        f"at most {MOST_GPUS} GPUs of different names, each with memoryGiB from 1 to {LARGEST_GPU_GIB} and, where it "
        "has one, a pricePerHour of 0 or more"
    )


def _broken_tolerations(tolerations: tuple[Mapping[str, str], ...]) -> str:
    known = all(toleration.keys() <= TOLERATION_KEYS for toleration in tolerations)
    return "" if known else f"tolerations that have {', '.join(sorted(TOLERATION_KEYS))} alone"


def _broken_default_tolerations(tolerations: tuple[Mapping[str, str], ...]) -> str:
    """Those of a run stand in its status, which the API server refuses where they are more than it takes."""
    longest = {"key": 317, "value": 63, "operator": 32, "effect": 32}
    short = all(len(str(value)) <= longest.get(key, 0) for item in tolerations for key, value in item.items())
    if len(tolerations) > MOST_DEFAULTS or not short:
        return _broken_tolerations(tolerations) or f"at most {MOST_DEFAULTS} tolerations as Kubernetes takes them"
    return _broken_tolerations(tolerations)


def _broken_node_selector(labels: Mapping[str, str]) -> str:
    sound = len(labels) <= MOST_DEFAULTS and all(len(value) <= 63 for value in labels.values())
    return "" if sound else f"at most {MOST_DEFAULTS} labels whose values have at most 63 characters"


def _broken_ttl(ttl_s: int | None) -> str:
    if ttl_s is None or 0 < ttl_s <= LONGEST_TTL_S:
        return ""
    return "above 0" if ttl_s <= 0 else f"at most {LONGEST_TTL_S}, which is a year"


def _long_amount(text: str) -> str:
    return "" if len(text) <= 32 else "at most 32 characters long"


def _long_name(text: str) -> str:
    return "" if len(text) <= 253 else "at most 253 characters long"


def _broken_annotations(annotations: Mapping[str, str]) -> str:
    size = sum(len((key + value).encode(errors="surrogatepass")) for key, value in annotations.items())
    sound = all(ANNOTATION.fullmatch(key) and not OWN_ANNOTATION.match(key) for key in annotations)
    if sound and size <= MOST_ANNOTATIONS:
        return ""
    return (
        f"annotations as Kubernetes takes them (prefix/name), of {MOST_ANNOTATIONS:,} bytes together at most and "
        "none of lora-operator.io or batch.kubernetes.io, which are the operator's and the Job controller's"
    )


def _broken_affinity(affinity: Mapping[str, Any]) -> str:
    kinds = ("nodeAffinity", "podAffinity", "podAntiAffinity")
    return "" if affinity.keys() <= set(kinds) else f"an affinity that has {', '.join(kinds)} alone"


def may_be_shown(name: str, value: str) -> bool:
    """Whether a status can hold this variable: it is short, and has neither a user nor a password of a proxy."""
    secret = "@" in value if name in PROXIES else _PASSWORD.search(value)
    return len(value) <= LONGEST_VALUE and not secret


def _shown(name: str, value: object) -> str:
    """As a message may have it, since a variable may hold the password for which it is refused."""
    return f"of {', '.join(value)}" if name == "default_environment" and isinstance(value, Mapping) else repr(value)


def _broken_environment(environment: Mapping[str, str]) -> str:
    known = len(environment) <= MOST_VARIABLES and all(VARIABLE.fullmatch(name) for name in environment)
    if known and all(may_be_shown(name, value) for name, value in environment.items()):
        return ""
    return (
        f"at most {MOST_VARIABLES} variables of NCCL, Gloo, UCX and libfabric (NCCL_, TORCH_NCCL_, GLOO_, UCX_, FI_), "
        f"HTTP_PROXY, HTTPS_PROXY, NO_PROXY and TZ alone, none longer than {LONGEST_VALUE} characters or with a user, "
        "token or password, which anyone who may read runs would see: let the pods through the proxy without one (no @ "
        "in its address)"
    )


MOST_ANNOTATIONS = 16_384
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
ANNOTATION = re.compile(
    rf"((?=[^/]{{1,253}}/){_LABEL}(\.{_LABEL})*/)?[a-z0-9]([-\w.]{{0,61}}[a-z0-9])?", re.ASCII | re.IGNORECASE
)
OWN_ANNOTATION = re.compile(r"([^/]*\.)?(lora-operator\.io|batch\.kubernetes\.io)/", re.IGNORECASE)
MOST_VARIABLES, LONGEST_VALUE = 64, 1024
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY")
VARIABLE = re.compile(r"((TORCH_)?NCCL|GLOO|UCX|FI)_[A-Z0-9_]{1,100}|HTTPS?_PROXY|NO_PROXY|TZ")
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")
CHECKS: Mapping[str, Callable[[Any], str]] = {
    "gpus": _broken_gpus,
    "pod_annotations": _broken_annotations,
    "preflight_tolerations": _broken_tolerations,
    "default_tolerations": _broken_default_tolerations,
    "default_node_selector": _broken_node_selector,
    "default_affinity": _broken_affinity,
    "default_ttl_s": _broken_ttl,
    **dict.fromkeys(("default_cpu_per_gpu", "default_memory_per_gpu"), _long_amount),
    **dict.fromkeys(("default_runtime_class_name", "default_priority_class_name", "default_queue"), _long_name),
    **dict.fromkeys(("default_checkpoint_claim", "cache_claim"), _long_name),
    "default_environment": _broken_environment,
}


def _broken_rule(name: str, value: object) -> str:
    """What a setting of the right type must be, and is not; empty where it is."""
    if name in _CHOICES:
        return "" if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    if name in CHECKS:
        return CHECKS[name](value)
    if name == "http_port":
        return "" if isinstance(value, int) and 1 <= value <= 65535 else "from 1 to 65535"
    if name in _MAY_BE_0:
        return "" if isinstance(value, int) and value >= 0 else "0 or above"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if 0 < value < float("inf") else "above 0"
    return "set" if name in _REQUIRED and value == "" else ""


def _in_yaml_names(text: str) -> str:
    """The text with settings spelled as in the file."""
    for name in OperatorConfig.__dataclass_fields__:
        text = re.sub(rf"\b{name}\b", yaml_name(name), text)
    for written, name in _GPU_NAMES.items():
        text = re.sub(rf"(?<=gpus\[)([0-9]+)\].{name}\b", rf"\1].{written}", text)
    return text


def yaml_name(field_name: str) -> str:
    """The YAML spelling of a field: `retry_base_s` becomes `retryBaseSeconds`, `allow_cpu` becomes `allowCPU`."""
    parts = re.sub(r"_s$", "_seconds", field_name).split("_")
    return parts[0] + "".join(_ACRONYMS.get(part, part.capitalize()) for part in parts[1:])


_ACRONYMS = {"cpu": "CPU", "gpu": "GPU", "http": "HTTP", "ttl": "TTL", "uri": "URI", "url": "URL"}
_CHOICES = {
    "image_pull_policy": ("Always", "IfNotPresent", "Never"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
    "log_format": ("text", "json"),
}
ORDERED = (
    ("retry_period_s", "renew_deadline_s"),
    ("renew_deadline_s", "lease_duration_s"),
)
_MAY_BE_0 = ("run_as_user", "run_as_group", "fs_group")
_REQUIRED = (
    "trainer_image",
    "ca_bundle_key",
    "lease_name",
    "default_gpu_resource_name",
    "preflight_cpu",
    "preflight_memory",
)


def _field_name(key: str) -> str:
    names: dict[str, Any] = {yaml_name(name): name for name in OperatorConfig.__dataclass_fields__}
    return str(names.get(key, key))
