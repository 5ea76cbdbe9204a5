"""`spec` of a LoRAFineTune: what trains (`config`), and what only a cluster reads."""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_trainer.spec.api import Api, Rule, api, described, found, keys_matching, matching
from lora_trainer.spec.config import (
    CheckpointConfig,
    DatasetConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    Quantization,
    Tracker,
    TrackingConfig,
    TrainingConfig,
)
from lora_trainer.spec.quantity import above_zero, at_least_16_mi, size_of

LARGEST_GPU_GIB = 1024
LONGEST_S = 365 * 24 * 3600
PRODUCT_LABEL = "nvidia.com/gpu.product"
"""By which GPU feature discovery says which GPUs a node has."""

_DOMAIN = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_RESOURCE = f"{_DOMAIN}/{_NAME}"
_LABEL_VALUE = "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_SAFE = 'letters, digits, "-", "_" and "."'
_OF_KUBERNETES = "(^|[.])kubernetes[.]io/"
_OTHER_VENDORS = "^(amd[.]com|gpu[.]intel[.]com|habana[.]ai)/"
"""Whose GPUs no node has with the labels of NVIDIA's GPU feature discovery."""
_SLICE = "mig-[1-9][0-9]?g[.]([0-9]{1,4})gb($|[^a-z0-9])"
_REMOTE = ("hf://", "s3://")


class Preflight(enum.StrEnum):
    """Whether model, data, output and memory are looked at before GPUs are asked for."""

    RUN = "Run"
    SKIP = "Skip"


class TolerationOperator(enum.StrEnum):
    """How a toleration's value relates to a taint's."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(enum.StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class NodeLabelOperator(enum.StrEnum):
    """How a node's label relates to values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class PodLabelOperator(enum.StrEnum):
    """How a pod's label relates to values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


def _is_name_of(kind: str) -> Rule:
    return matching(
        _DOMAIN,
        f'cannot be the name of a {kind}: use lower-case letters, digits, "-" and ".", starting and ending with a '
        "letter or digit",
    )


_SECRET_NAME = _is_name_of("Secret")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSecret:
    """A Secret that opens an address."""

    name: str = field(
        metadata=api(
            "Name of the Secret, which has the keys that the address needs.", longest=253, rules=(_SECRET_NAME,)
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSecret:
    """A Secret that opens a result's place, or a tracker."""

    name: str = field(
        metadata=api("Name of the Secret, which has the keys that its use needs.", longest=253, rules=(_SECRET_NAME,))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(ModelConfig):
    """The base model, and the Secret that opens it."""

    secret_ref: AddressSecret | None = field(
        default=None,
        metadata=api(
            "Secret of the namespace for a gated or private model: HF_TOKEN for hf://; AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and optionally AWS_SESSION_TOKEN for s3://. Absent for s3://: the identity of the "
            "trainer's service account, or anonymous. Not for pvc://. The operator never reads Secrets.",
            between=(
                Rule(
                    cel="!has(self.secretRef) || !self.uri.startsWith('pvc://')",
                    forbidden=True,
                    message="a volume needs no token: remove secretRef, which is read only for an hf:// or s3:// uri",
                    broken=lambda model, _: model.secret_ref is not None and model.uri.startswith("pvc://"),
                ),
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset(DatasetConfig):
    """The data, and the Secret that opens them."""

    secret_ref: AddressSecret | None = field(
        default=None,
        metadata=api(
            "Secret of the namespace for a gated or private dataset, validationUri included, with the keys of "
            "model.secretRef. Absent: model.secretRef, if both are on the Hub or both on S3; otherwise for s3:// the "
            "identity of the trainer's service account, or anonymous.",
            between=(
                Rule(
                    cel="!has(self.secretRef) || self.uri.startsWith('hf://') || self.uri.startsWith('s3://') || "
                    "(has(self.validationUri) && (self.validationUri.startsWith('hf://') || "
                    "self.validationUri.startsWith('s3://'))) || !self.uri.matches('^(pvc|configmap)://')",
                    forbidden=True,
                    message="volumes and ConfigMaps need no token: remove secretRef, which is read only for an hf:// "
                    "or s3:// address",
                    broken=lambda dataset, _: (
                        dataset.secret_ref is not None
                        and not dataset.uri.startswith(_REMOTE)
                        and not (dataset.validation_uri or "").startswith(_REMOTE)
                    ),
                ),
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(OutputConfig):
    """The result's place, and the Secret that opens it."""

    secret_ref: UseSecret | None = field(
        default=None,
        metadata=api(
            "Secret of the namespace with write access: HF_TOKEN for hf://; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "and optionally AWS_SESSION_TOKEN for s3://; .dockerconfigjson (type kubernetes.io/dockerconfigjson) for "
            "oci://. Not for pvc://. The operator never reads Secrets.",
            between=(
                Rule(
                    cel="!has(self.secretRef) || !self.uri.startsWith('pvc://')",
                    forbidden=True,
                    message="a volume needs no token: remove secretRef, which is read only for an s3://, hf:// or "
                    "oci:// uri",
                    broken=lambda output, _: output.secret_ref is not None and output.uri.startswith("pvc://"),
                ),
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking(TrackingConfig):
    """The tracker, and the Secret that opens it."""

    secret_ref: UseSecret | None = field(
        default=None,
        metadata=api(
            "Secret of the namespace with the tracker's credentials: WANDB_API_KEY for WandB; "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for MLflow.",
            between=(
                Rule(
                    cel="!has(self.secretRef) || !(self.kind in ['None', 'TensorBoard'])",
                    forbidden=True,
                    message="kinds None and TensorBoard need no credentials: remove secretRef, or write kind: MLflow "
                    "or WandB",
                    broken=lambda tracking, _: (
                        tracking.secret_ref is not None and tracking.kind in {Tracker.NONE, Tracker.TENSORBOARD}
                    ),
                ),
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeFrom:
    """Another run, by whose checkpoint this one begins."""

    name: str = field(
        metadata=api(
            "Name of a LoRAFineTune of the namespace, which need not exist any more. Its checkpoints must be on this "
            "run's checkpoint PVC.",
            longest=52,
            rules=(
                matching(
                    "[a-z]([-a-z0-9]*[a-z0-9])?",
                    'cannot be the name of a LoRAFineTune: use lower-case letters, digits and "-", starting with a '
                    "letter and ending with a letter or digit",
                ),
            ),
        )
    )


def _of_nvidia(name: str) -> Rule:
    return Rule(
        cel=f"!has(self.{name}) || !has(self.gpuResourceName) || self.gpus == 0 || "
        f"!self.gpuResourceName.matches('{_OTHER_VENDORS}')",
        forbidden=True,
        message="nodes with GPUs of this gpuResourceName lack the labels of NVIDIA, by which pods would find them: "
        f"remove {name}",
        broken=lambda asked, has: has(name) and found(_OTHER_VENDORS, asked.gpu_resource_name or ""),
    )


def _of_gpus(name: str) -> Rule:
    return Rule(
        cel=f"!has(self.{name}) || self.gpus != 0",
        forbidden=True,
        message="a run without GPUs cannot choose one: remove it, or raise resources.gpus",
        broken=lambda asked, has: has(name) and asked.gpus == 0,
    )


def _more_than_its_slice(asked: "Resources") -> bool:
    """Whether less memory is in the name of the resource than each GPU must have."""
    named, least = re.search(_SLICE, asked.gpu_resource_name or ""), asked.gpu_min_memory_gib
    return named is not None and least is not None and least > int(named[1])


def _more_shared_than_all(asked: "Resources") -> bool:
    shared, memory = size_of(asked.shared_memory or ""), size_of(asked.memory or "")
    return shared is not None and memory is not None and shared > memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What each pod of a training asks for, but for what is said of nodes."""

    gpus: int = field(
        default=1,
        metadata=api(
            "GPUs of each node, with one training process per GPU. 0 trains on the CPU, which is slow and meant for "
            "small models. A pod that requested GPUs and sees none fails with GPUFault.",
            low=0,
            high=64,
        ),
    )
    nodes: int = field(
        default=1,
        metadata=api(
            "Pods that train together, each with the resources given here. More than one needs a ReadWriteMany PVC "
            "for the output or for checkpoints, and nodes that reach each other's pods.",
            low=1,
            high=64,
        ),
    )
    gpu_resource_name: str | None = field(
        default=None,
        metadata=api(
            "Resource name of the GPUs, for example nvidia.com/gpu, or nvidia.com/mig-3g.40gb for a slice of one. "
            "Absent: the operator's default, which is nvidia.com/gpu unless the administrator changes it.",
            longest=253,
            appears="has(self.gpuResourceName) == has(oldSelf.gpuResourceName) || has(oldSelf.gpuResourceName) && "
            "oldSelf.gpuResourceName == 'nvidia.com/gpu'",
            rules=(
                Rule(
                    cel=f"self.matches('^{_RESOURCE}$') && !self.matches('{_OF_KUBERNETES}')",
                    message="cannot be a GPU resource: write domain/name as kubectl describe node lists it under "
                    "Allocatable, as in nvidia.com/gpu",
                    quoted=True,
                    broken=lambda name: not found(f"^{_RESOURCE}$", name) or found(_OF_KUBERNETES, name),
                ),
            ),
        ),
    )
    gpu_min_memory_gib: int | None = field(
        default=None,
        metadata=api(
            "Minimum memory of each GPU, in GiB as sold: 24 includes an L4 or an RTX 4090. Pods go only to nodes "
            "with a matching label nvidia.com/gpu.memory of GPU feature discovery, and the plan assumes the smallest "
            "such GPU. Absent: any GPU.",
            name="gpuMinMemoryGiB",
            low=1,
            high=LARGEST_GPU_GIB,
            between=(
                _of_gpus("gpuMinMemoryGiB"),
                _of_nvidia("gpuMinMemoryGiB"),
                Rule(
                    cel="!has(self.gpuMinMemoryGiB) || !has(self.gpuResourceName) || "
                    f"!self.gpuResourceName.matches('{_SLICE}') || self.gpus == 0 || "
                    "self.gpuMinMemoryGiB <= int(self.gpuResourceName.find('g[.][0-9]{1,4}gb')"
                    ".replace('g.', '').replace('gb', ''))",
                    forbidden=True,
                    message="is more than the slice of a GPU in gpuResourceName has: lower or remove it",
                    broken=lambda asked, _: asked.gpus > 0 and _more_than_its_slice(asked),
                ),
            ),
        ),
    )
    gpu_products: tuple[str, ...] = field(
        default=(),
        metadata=api(
            "GPUs that the run may take, by the node label nvidia.com/gpu.product of GPU feature discovery, as in "
            "NVIDIA-L4. If the memory of each is known, the plan assumes the smallest. Absent: any GPU.",
            fewest=1,
            most=16,
            item=Api(
                about="The value of a node's label nvidia.com/gpu.product.",
                longest=63,
                rules=(
                    matching(
                        _LABEL_VALUE,
                        "is not the value of a label: write what kubectl get nodes -L nvidia.com/gpu.product shows, "
                        "as in NVIDIA-L4",
                    ),
                ),
            ),
            between=(_of_gpus("gpuProducts"), _of_nvidia("gpuProducts")),
        ),
    )
    cpu: str | None = field(
        default=None,
        metadata=api(
            'Requested CPU cores, as in 4 or "500m". Absent: the operator\'s default per GPU.',
            quantity=True,
            rules=(above_zero("an amount of CPU", 'write cores above 0 as a quantity, as in 4 or "500m"'),),
        ),
    )
    memory: str | None = field(
        default=None,
        metadata=api(
            'Requested and maximum main memory, as in "16Gi"; not GPU memory. Absent: the operator\'s default per '
            "GPU, or status.plan.podMemory if that is more.",
            quantity=True,
            rules=(at_least_16_mi("memory", "16Gi"),),
        ),
    )
    shared_memory: str | None = field(
        default=None,
        metadata=api(
            'Size of /dev/shm, through which processes of one pod exchange data, as in "2Gi". It is part of memory. '
            "Absent: 1Gi.",
            quantity=True,
            rules=(at_least_16_mi("shared memory", "2Gi"),),
            between=(
                Rule(
                    cel="!has(self.sharedMemory) || !has(self.memory) || !isQuantity(string(self.sharedMemory)) || "
                    "!isQuantity(string(self.memory)) || "
                    "quantity(string(self.memory)).compareTo(quantity(string(self.sharedMemory))) >= 0 || "
                    "quantity(string(self.memory)).isLessThan(quantity('16Mi'))",
                    message="is more than memory, which it counts as part of: raise memory or lower it",
                    quoted=True,
                    broken=lambda asked, _: _more_shared_than_all(asked),
                ),
            ),
        ),
    )
    ephemeral_storage: str | None = field(
        default=None,
        metadata=api(
            "Requested disk of the node for logs, temporary files and, without a cache PVC, model and data, as in "
            '"100Gi". Absent: none.',
            quantity=True,
            rules=(at_least_16_mi("disk", "100Gi"),),
        ),
    )
    extended_resources: Mapping[str, int] = field(
        default_factory=dict,
        metadata=api(
            "Devices that each pod gets beside its GPUs, by resource name. Example for RDMA: "
            "rdma/hca_shared_devices_a: 1.",
            fewest=1,
            most=4,
            item=Api(about="How many of them.", low=1, high=64),
            rules=(
                keys_matching(
                    _RESOURCE,
                    317,
                    "there is a key that cannot be a resource: write domain/name as kubectl describe node lists it "
                    "under Allocatable, as in rdma/hca_shared_devices_a",
                    but=_OF_KUBERNETES,
                ),
            ),
            between=(
                Rule(
                    cel="!has(self.extendedResources) || !has(self.gpuResourceName) || "
                    "!(self.gpuResourceName in self.extendedResources)",
                    message="GPUs are asked for with gpus and gpuResourceName: remove their name here",
                    broken=lambda asked, _: asked.gpu_resource_name in asked.extended_resources,
                ),
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A tolerated taint, as in the spec of a pod."""

    key: str | None = field(
        default=None,
        metadata=api(
            "Key of the taint; absent with operator Exists: every taint.",
            shortest=0,
            longest=317,
            rules=(
                matching(
                    f"({_DOMAIN}/)?{_NAME}",
                    f"cannot be the key of a taint: write name or domain/name in {_SAFE}",
                    empty=True,
                ),
            ),
            between=(
                Rule(
                    cel="(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
                    message="a toleration without a key tolerates every taint: then write operator: Exists, else name "
                    "the key",
                    broken=lambda taint, _: not taint.key and taint.operator is not TolerationOperator.EXISTS,
                ),
            ),
        ),
    )
    operator: TolerationOperator | None = field(
        default=None, metadata=api("Exists tolerates any value, Equal (absent: this one) only the value given.")
    )
    value: str | None = field(
        default=None,
        metadata=api(
            "Value of the taint, with operator Equal.",
            shortest=0,
            longest=63,
            rules=(
                matching(
                    _LABEL_VALUE,
                    f"cannot be the value of a taint: write {_SAFE}, starting and ending with a letter or digit",
                    empty=True,
                ),
            ),
            between=(
                Rule(
                    cel="!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                    forbidden=True,
                    message="with operator Exists any value is tolerated: remove value, or write operator: Equal",
                    broken=lambda taint, _: bool(taint.value) and taint.operator is TolerationOperator.EXISTS,
                ),
            ),
        ),
    )
    effect: TaintEffect | None = field(default=None, metadata=api("Effect of the taint; absent: every effect."))
    toleration_seconds: int | None = field(
        default=None,
        metadata=api(
            "Seconds to stay on a node that gets a NoExecute taint; absent: for good.",
            wide=True,
            low=0,
            high=LONGEST_S,
            between=(
                Rule(
                    cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                    forbidden=True,
                    message="only evictions wait: remove tolerationSeconds, or write effect: NoExecute",
                    broken=lambda taint, _: (
                        taint.toleration_seconds is not None and taint.effect is not TaintEffect.NO_EXECUTE
                    ),
                ),
            ),
        ),
    )


TOLERATION_KEYS = tuple(field.key for field in described(Toleration))


def _values() -> Any:
    about = "Values to compare with; none with Exists and DoesNotExist."
    return api(about, most=16, item=Api(about="A value of the label.", shortest=0, longest=63))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExpression:
    """A condition on one label of a node."""

    key: str = field(metadata=api("Key of the label.", longest=317))
    operator: NodeLabelOperator = field(metadata=api("How the label's value relates to values."))
    values: tuple[str, ...] = field(default=(), metadata=_values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PodExpression:
    """A condition on one label of a pod."""

    key: str = field(metadata=api("Key of the label.", longest=317))
    operator: PodLabelOperator = field(metadata=api("How the label's value relates to values."))
    values: tuple[str, ...] = field(default=(), metadata=_values())


_EXPRESSIONS = api(
    "What the labels must be like, all of it.", most=8, item=Api(about="A condition on one label."), plural="conditions"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTerm:
    """What a node's labels must be like."""

    match_expressions: tuple[NodeExpression, ...] = field(default=(), metadata=_EXPRESSIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSelector:
    """What a pod's labels must be like."""

    match_labels: Mapping[str, str] = field(
        default_factory=dict,
        metadata=api(
            "Labels that they must have.", most=16, item=Api(about="Value of the label.", shortest=0, longest=63)
        ),
    )
    match_expressions: tuple[PodExpression, ...] = field(default=(), metadata=_EXPRESSIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTerm:
    """Pods, and what is a place."""

    topology_key: str = field(
        metadata=api("Label of nodes; those of equal value are one place, as in kubernetes.io/hostname.", longest=317)
    )
    namespaces: tuple[str, ...] = field(
        default=(),
        metadata=api(
            "Namespaces of these pods; absent: that of the run.",
            most=16,
            item=Api(about="Name of a namespace.", longest=63),
        ),
    )
    label_selector: LabelSelector | None = field(default=None, metadata=api("Which pods, by their labels."))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferredNodes:
    """A wish for a node."""

    weight: int = field(metadata=api("How much it counts beside other wishes.", low=1, high=100))
    preference: NodeTerm = field(metadata=api("Labels that a node must have."))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferredPods:
    """A wish for other pods' places."""

    weight: int = field(metadata=api("How much it counts beside other wishes.", low=1, high=100))
    pod_affinity_term: PodTerm = field(metadata=api("Pods, and the label of nodes by which being beside them counts."))


_WISHES = api(
    "Wishes with their weights, which are met where that is possible.",
    most=8,
    item=Api(about="A wish and its weight."),
    plural="wishes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredNodes:
    """Terms of which one must be met."""

    node_selector_terms: tuple[NodeTerm, ...] = field(
        metadata=api(
            "Terms, one of which must be met.", most=8, item=Api(about="Labels that a node must have."), plural="terms"
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAffinity:
    """Nodes that a pod goes to."""

    required_during_scheduling_ignored_during_execution: RequiredNodes | None = field(
        default=None, metadata=api("What a node must be like, or the pod does not go there.")
    )
    preferred_during_scheduling_ignored_during_execution: tuple[PreferredNodes, ...] = field(
        default=(), metadata=_WISHES
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAffinity:
    """Pods that a pod goes beside, or away from."""

    required_during_scheduling_ignored_during_execution: tuple[PodTerm, ...] = field(
        default=(),
        metadata=api(
            "Terms of where the pod may go, all of which must be met.",
            most=8,
            item=Api(about="Pods, and the label of nodes by which being beside them counts."),
            plural="terms",
        ),
    )
    preferred_during_scheduling_ignored_during_execution: tuple[PreferredPods, ...] = field(
        default=(), metadata=_WISHES
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """As in the spec of a pod, as much of it as a run may say."""

    node_affinity: NodeAffinity | None = field(default=None, metadata=api("Nodes by their labels."))
    pod_affinity: PodAffinity | None = field(default=None, metadata=api("Beside which pods."))
    pod_anti_affinity: PodAffinity | None = field(default=None, metadata=api("Away from which pods."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """Which nodes the pods may go to. Tolerations and affinity are passed on as they are written."""

    node_selector: Mapping[str, str] = field(
        default_factory=dict,
        metadata=api(
            "Labels that a node must have, for example nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3.",
            most=32,
            item=Api(
                about="Value that the label must have.",
                shortest=0,
                longest=63,
                rules=(
                    matching(
                        _LABEL_VALUE,
                        f"cannot be the value of a label: write {_SAFE}, starting and ending with a letter or digit",
                        empty=True,
                    ),
                ),
            ),
            rules=(
                keys_matching(
                    f"({_DOMAIN}/)?{_NAME}",
                    317,
                    f"there is a key that cannot be a label: write name or domain/name in {_SAFE}, as kubectl get "
                    "nodes --show-labels lists them",
                ),
            ),
        ),
    )
    tolerations: tuple[Mapping[str, Any], ...] = field(
        default=(),
        metadata=api(
            "Taints that the pods tolerate, as in the spec of a pod. Example: {key: nvidia.com/gpu, operator: "
            "Exists, effect: NoSchedule}.",
            most=32,
            item=Api(about="One tolerated taint."),
            document=Toleration,
            plural="tolerations, as in the spec of a pod",
        ),
    )
    affinity: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=api(
            "Node and pod affinity, as in the spec of a pod. The operator adds what gpuMinMemoryGiB and gpuProducts "
            "require to each term.",
            document=Affinity,
        ),
    )
    runtime_class_name: str | None = field(
        default=None,
        metadata=api(
            "RuntimeClass of the training pods, for example nvidia if the nodes' default runtime has no GPUs. It "
            "must exist in the cluster.",
            longest=253,
            rules=(_is_name_of("RuntimeClass"),),
        ),
    )
    priority_class_name: str | None = field(
        default=None,
        metadata=api(
            "PriorityClass of the pods, by which they may preempt others. It must exist in the cluster.",
            longest=253,
            rules=(_is_name_of("PriorityClass"),),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """All that a LoRAFineTune asks for."""

    model: Model = field(metadata=api("The base model and how to access it."))
    dataset: Dataset = field(metadata=api("The training data and how to read it."))
    lora: LoraConfig = field(
        default_factory=LoraConfig,
        metadata=api(
            "The adapter: a pair of low-rank matrices for each chosen linear layer. The defaults suit most runs.",
            between=(
                Rule(
                    cel="self.quantization in ['Auto', 'None'] || !(self.lora.init in ['PiSSA', 'OLoRA'])",
                    at=".init",
                    forbidden=True,
                    message="does not go with quantization: it takes the main directions out of the base weights, "
                    "which 4- and 8-bit storage does not allow; write init: Default, or quantization: Auto or None",
                    quoted=True,
                    broken=lambda spec, _: (
                        spec.lora.init.changes_base and spec.quantization not in {Quantization.AUTO, Quantization.NONE}
                    ),
                ),
            ),
        ),
    )
    quantization: Quantization = field(
        default=Quantization.AUTO,
        metadata=api(
            "How the frozen base weights are stored during training. None keeps the training precision. NF4 (QLoRA) "
            "and FP4 take about half a byte per parameter, with double quantization; NF4 loses less. INT8 takes one "
            "byte. Auto keeps the training precision if the run fits its GPU, with recomputed activations and "
            "smaller micro-batches if needed, and otherwise uses NF4; status.plan.reason says why. Quantize only "
            "what does not fit otherwise: 4-bit weights can cost accuracy, and unpacking them slows every "
            "micro-batch.",
            fixed="self == oldSelf || self == 'Auto' && oldSelf == 'None'",
        ),
    )
    training: TrainingConfig = field(
        default_factory=TrainingConfig,
        metadata=api(
            "How to train. The defaults suit most runs.",
            between=(
                Rule(
                    cel="!has(self.training.earlyStoppingPatience) || !has(self.dataset.validationFraction) || "
                    "!self.dataset.validationFraction.matches('^0+([.]0+)?([eE].*)?$')",
                    at=".earlyStoppingPatience",
                    forbidden=True,
                    message="early stopping looks at the loss on held-out rows, of which a validationFraction of 0 "
                    "leaves none: remove it, or hold out rows with dataset.validationFraction or "
                    "dataset.validationUri",
                    broken=lambda spec, _: (
                        spec.training.early_stopping_patience is not None and not spec.dataset.validation_fraction
                    ),
                ),
                Rule(
                    cel="self.resources.gpus < 2 && self.resources.nodes < 2 || self.training.effectiveBatchSize < 1 "
                    "|| self.resources.gpus < 0 || self.resources.gpus > 64 || self.resources.nodes < 1 || "
                    "self.resources.nodes > 64 || self.training.effectiveBatchSize >= "
                    "(self.resources.gpus > 1 ? self.resources.gpus : 1) * self.resources.nodes",
                    at=".effectiveBatchSize",
                    message="each training process needs an example for each step: raise it to at least "
                    "resources.gpus x resources.nodes, or use fewer GPUs or nodes",
                    broken=lambda spec, _: (
                        spec.training.effective_batch_size < max(1, spec.resources.gpus) * spec.resources.nodes
                    ),
                ),
            ),
        ),
    )
    resources: Resources = field(
        default_factory=Resources,
        metadata=api("What each training pod requests from the cluster."),
    )
    scheduling: Scheduling = field(
        default_factory=Scheduling,
        metadata=api(
            "Where the training pods may run. An absent field takes the operator's default, which the administrator "
            "sets with the chart's defaults; status.resolved.pod shows the result."
        ),
    )
    output: Output = field(metadata=api("Where the result goes, and in which form."))
    checkpoint: CheckpointConfig = field(
        default_factory=CheckpointConfig,
        metadata=api(
            "How the training state is saved, so that an interrupted run resumes. Checkpoints go to "
            ".lora-checkpoints on a PVC; without a PVC an interrupted run starts over."
        ),
    )
    tracking: Tracking = field(
        default_factory=Tracking,
        metadata=api("Where the training curves also go. A failing tracker never fails a run."),
    )
    resume_from: ResumeFrom | None = field(
        default=None,
        metadata=api(
            "Continue from another run's last valid checkpoint, with more steps or after a failure. The base model "
            "and lora, except dropout, must be the same; otherwise the run fails with ResumeMismatch. If the data, "
            "the batch size, the seed or the optimizer differ, the run starts at step 0 from the other run's "
            "weights."
        ),
    )
    preflight: Preflight = field(
        default=Preflight.RUN,
        metadata=api(
            "Run validates the run in a CPU pod before requesting GPUs: the model, the dataset, the output's "
            "credentials, and the memory and time that training needs. With a cache PVC it also downloads model and "
            "data. The findings are in status.preflight and status.plan. An error ends the run with the reason that "
            "training would give, or with DoesNotFit. An output on a PVC is checked when training begins. Skip "
            "starts with training, which makes the same checks."
        ),
    )
    suspend: bool = field(
        default=False,
        metadata=api(
            "true saves a checkpoint if the run has a PVC for it, stops the training pods, frees their GPUs and "
            "holds the run. false resumes it from the checkpoint. Suspended time does not count towards "
            "activeDeadlineSeconds. It does nothing on a finished run.",
            fixed=None,
        ),
    )
    max_retries: int = field(
        default=3,
        metadata=api(
            "How often a failed run is retried from its last checkpoint, over all its Jobs. Failed pods count; those "
            "of several nodes in one round count once. Deleted pods, deleted Jobs and pods evicted because their "
            "node lacks memory or disk count too. Pods that were preempted, drained or lost with their node do not, "
            "unless a run of several nodes loses one without notice. An invalid spec, bad data, a missing model, "
            "refused access, a loss that is not finite and too little GPU memory are never retried.",
            low=0,
            high=20,
            fixed=None,
        ),
    )
    active_deadline_s: int | None = field(
        default=None,
        metadata=api(
            "Seconds that the run may be active, preflight and retries included, before it fails with "
            "DeadlineExceeded. Suspended and queued time does not count; status.runSeconds shows the time used. "
            "Absent: no limit. You can raise or remove it later, but not lower or add it.",
            name="activeDeadlineSeconds",
            wide=True,
            low=1,
            high=LONGEST_S,
            fixed=None,
            rules=(
                Rule(
                    cel="self >= oldSelf",
                    forbidden=True,
                    message="a deadline can be raised or removed, but not lowered; set suspend to true or delete the "
                    "LoRAFineTune to stop the run",
                ),
            ),
            between=(
                Rule(
                    cel="has(oldSelf.activeDeadlineSeconds) || !has(self.activeDeadlineSeconds)",
                    forbidden=True,
                    message="a deadline can be raised or removed, but not added to a run that has none; set suspend "
                    "to true or delete the LoRAFineTune to stop the run",
                ),
            ),
        ),
    )
    pending_timeout_s: int | None = field(
        default=None,
        metadata=api(
            "Seconds that the run may wait until all its pods run: for a node, an image, a volume, or because the "
            "cluster refuses its Job. Then it fails with PendingTimeout and the cause. Suspended and queued time, a "
            "preflight at work and a Job's back-off after a failed pod do not count. Absent: no limit.",
            name="pendingTimeoutSeconds",
            wide=True,
            low=1,
            high=LONGEST_S,
            fixed=None,
        ),
    )
    ttl_s: int | None = field(
        default=None,
        metadata=api(
            "Seconds after which Kubernetes deletes the Jobs of a finished run, with their pods and logs. The "
            "LoRAFineTune, its status and the adapter stay. Absent: the operator's default, otherwise Jobs stay as "
            "long as the LoRAFineTune. If you remove it after the end, the Jobs keep the last value.",
            name="ttlSecondsAfterFinished",
            wide=True,
            low=0,
            high=LONGEST_S,
            fixed=None,
        ),
    )
