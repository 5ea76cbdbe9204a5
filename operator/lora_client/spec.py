"""The spec of a LoRAFineTune as types: written by hack/docs from the definition."""

from typing import Any, Literal, NotRequired, TypedDict


class ModelSecretRef(TypedDict):
    """Secret of the namespace for a gated or private model: HF_TOKEN for hf://; AWS_ACCESS_KEY_ID, ...."""

    name: str


class Model(TypedDict):
    """The base model and how to access it."""

    uri: str
    secretRef: NotRequired[ModelSecretRef]


class DatasetSecretRef(TypedDict):
    """Secret of the namespace for a gated or private dataset, validationUri included, with the keys of ...."""

    name: str


class Dataset(TypedDict):
    """The training data and how to read it."""

    uri: str
    format: NotRequired[Literal["Auto", "Messages", "PromptCompletion", "Instruction", "Text"]]
    columns: NotRequired[dict[str, str]]
    split: NotRequired[str]
    validationUri: NotRequired[str]
    validationFraction: NotRequired[str]
    maxValidationRows: NotRequired[int]
    splitSeed: NotRequired[int]
    chatTemplate: NotRequired[str]
    templateArguments: NotRequired[dict[str, str]]
    secretRef: NotRequired[DatasetSecretRef]


class Lora(TypedDict):
    """The adapter: a pair of low-rank matrices for each chosen linear layer."""

    rank: NotRequired[int]
    alpha: NotRequired[int]
    layers: NotRequired[Literal["AllLinear", "Attention", "MLP", "QueryValue"]]
    targetModules: NotRequired[list[str]]
    excludeModules: NotRequired[list[str]]
    dropout: NotRequired[str]
    layerIndices: NotRequired[list[int]]
    scaling: NotRequired[Literal["Classic", "RankStabilized"]]
    variant: NotRequired[Literal["LoRA", "DoRA"]]
    init: NotRequired[Literal["Default", "Gaussian", "PiSSA", "OLoRA"]]
    rankPattern: NotRequired[dict[str, int]]
    alphaPattern: NotRequired[dict[str, int]]
    modulesToSave: NotRequired[list[str]]
    targetParameters: NotRequired[list[str]]


class Training(TypedDict):
    """How to train."""

    epochs: NotRequired[str | int]
    maxSteps: NotRequired[int]
    learningRate: NotRequired[str]
    schedule: NotRequired[Literal["Cosine", "Linear", "Constant"]]
    warmupRatio: NotRequired[str]
    effectiveBatchSize: NotRequired[int]
    microBatchSize: NotRequired[int]
    maxSequenceLength: NotRequired[int]
    lossOn: NotRequired[Literal["Completion", "All"]]
    precision: NotRequired[Literal["Auto", "BF16", "FP16", "FP32"]]
    seed: NotRequired[int]
    packing: NotRequired[Literal["Enabled", "Disabled"]]
    optimizer: NotRequired[Literal["AdamW", "AdamW8bit", "PagedAdamW8bit"]]
    weightDecay: NotRequired[str]
    maxGradNorm: NotRequired[str]
    activationCheckpointing: NotRequired[Literal["Auto", "None", "Selective", "Full"]]
    kernels: NotRequired[Literal["Auto", "Reference"]]
    evalSteps: NotRequired[int]
    earlyStoppingPatience: NotRequired[int]


class Resources(TypedDict):
    """What each training pod requests from the cluster."""

    gpus: NotRequired[int]
    nodes: NotRequired[int]
    gpuResourceName: NotRequired[str]
    gpuMinMemoryGiB: NotRequired[int]
    gpuProducts: NotRequired[list[str]]
    cpu: NotRequired[str | int]
    memory: NotRequired[str | int]
    sharedMemory: NotRequired[str | int]
    ephemeralStorage: NotRequired[str | int]
    extendedResources: NotRequired[dict[str, int]]


class SchedulingTolerations(TypedDict):
    """Taints that the pods tolerate, as in the spec of a pod."""

    key: NotRequired[str]
    operator: NotRequired[Literal["Exists", "Equal"]]
    value: NotRequired[str]
    effect: NotRequired[Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]]
    tolerationSeconds: NotRequired[int]


class Scheduling(TypedDict):
    """Where the training pods may run."""

    nodeSelector: NotRequired[dict[str, str]]
    tolerations: NotRequired[list[SchedulingTolerations]]
    affinity: NotRequired[dict[str, Any]]
    runtimeClassName: NotRequired[str]
    priorityClassName: NotRequired[str]


class OutputSecretRef(TypedDict):
    """Secret of the namespace with write access: HF_TOKEN for hf://; AWS_ACCESS_KEY_ID, ...."""

    name: str


class Output(TypedDict):
    """Where the result goes, and in which form."""

    uri: str
    merge: NotRequired[Literal["Adapter", "Merged", "Both"]]
    mergePrecision: NotRequired[Literal["Auto", "FP32"]]
    secretRef: NotRequired[OutputSecretRef]


class Checkpoint(TypedDict):
    """How the training state is saved, so that an interrupted run resumes."""

    intervalSeconds: NotRequired[int]
    intervalSteps: NotRequired[int]
    keep: NotRequired[int]
    volumeClaimName: NotRequired[str]


class TrackingSecretRef(TypedDict):
    """Secret of the namespace with the tracker's credentials: WANDB_API_KEY for WandB; ...."""

    name: str


class Tracking(TypedDict):
    """Where the training curves also go."""

    kind: NotRequired[Literal["None", "TensorBoard", "MLflow", "WandB"]]
    project: NotRequired[str]
    secretRef: NotRequired[TrackingSecretRef]


class ResumeFrom(TypedDict):
    """Continue from another run's last valid checkpoint, with more steps or after a failure."""

    name: str


class Spec(TypedDict):
    """What to train."""

    model: Model
    dataset: Dataset
    lora: NotRequired[Lora]
    quantization: NotRequired[Literal["Auto", "None", "NF4", "FP4", "INT8"]]
    training: NotRequired[Training]
    resources: NotRequired[Resources]
    scheduling: NotRequired[Scheduling]
    output: Output
    checkpoint: NotRequired[Checkpoint]
    tracking: NotRequired[Tracking]
    resumeFrom: NotRequired[ResumeFrom]
    preflight: NotRequired[Literal["Run", "Skip"]]
    suspend: NotRequired[bool]
    maxRetries: NotRequired[int]
    activeDeadlineSeconds: NotRequired[int]
    pendingTimeoutSeconds: NotRequired[int]
    ttlSecondsAfterFinished: NotRequired[int]


class Manifest(TypedDict):
    """A whole resource, as a file has it."""

    apiVersion: NotRequired[str]
    kind: NotRequired[str]
    metadata: dict[str, Any]
    spec: Spec
