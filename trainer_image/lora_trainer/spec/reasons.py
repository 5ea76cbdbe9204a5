"""The vocabulary of reasons: the same words in conditions, events, termination messages and metric labels."""

import enum


class Reason(enum.StrEnum):
    """Why a condition has its status. Waiting, running and terminal reasons, in this order."""

    PENDING = "Pending"
    ACCEPTED = "Accepted"
    QUEUED = "Queued"
    PREEMPTED = "Preempted"
    QUOTA_RESERVED = "QuotaReserved"
    SUSPENDED_BY_USER = "SuspendedByUser"
    SUSPENDED_EXTERNALLY = "SuspendedExternally"
    NOT_SUSPENDED = "NotSuspended"
    EVICTED = "Evicted"
    NODE_UNREACHABLE = "NodeUnreachable"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    IMAGE_PULL_BACK_OFF = "ImagePullBackOff"
    INVALID_IMAGE = "InvalidImage"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a password
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    VOLUME_NOT_READY = "VolumeNotReady"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    ADMISSION_DENIED = "AdmissionDenied"
    FORBIDDEN = "Forbidden"
    POD_SECURITY_VIOLATION = "PodSecurityViolation"
    NAME_CONFLICT = "NameConflict"
    JOB_RECREATED = "JobRecreated"

    STARTING = "Starting"
    LOADING_MODEL = "LoadingModel"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"
    CHECKPOINTING = "Checkpointing"
    CHECKPOINT_SAVED = "CheckpointSaved"
    NO_CHECKPOINT_CLAIM = "NoCheckpointClaim"
    PREPARING = "Preparing"
    PREFLIGHT = "Preflight"
    PREFLIGHT_PASSED = "PreflightPassed"
    OUTPUT_LOCKED = "OutputLocked"
    STALLED = "Stalled"
    PEER_FAILED = "PeerFailed"
    POD_RUNNING = "PodRunning"
    RESTARTING = "Restarting"

    SUCCEEDED = "Succeeded"

    CONFIG_INVALID = "ConfigInvalid"
    DOES_NOT_FIT = "DoesNotFit"
    DATASET_INVALID = "DatasetInvalid"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_ACCESS_DENIED = "DatasetAccessDenied"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    OUTPUT_ACCESS_DENIED = "OutputAccessDenied"
    NON_FINITE_LOSS = "NonFiniteLoss"
    LOSS_DIVERGED = "LossDiverged"
    CUDA_OUT_OF_MEMORY = "CUDAOutOfMemory"
    OOM_KILLED = "OOMKilled"
    STORAGE_FULL = "StorageFull"
    STORAGE_ERROR = "StorageError"
    UPLOAD_FAILED = "UploadFailed"
    CHECKPOINT_INVALID = "CheckpointInvalid"
    RESUME_MISMATCH = "ResumeMismatch"
    VERIFICATION_FAILED = "VerificationFailed"
    GPU_FAULT = "GPUFault"
    NODE_LOST = "NodeLost"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    PENDING_TIMEOUT = "PendingTimeout"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    RESULT_UNKNOWN = "ResultUnknown"
    MULTI_CLUSTER_QUEUE = "MultiClusterQueue"
    INTERNAL_ERROR = "InternalError"


FAILURES = frozenset(
    {
        Reason.INVALID_IMAGE,
        Reason.CONFIG_INVALID,
        Reason.DOES_NOT_FIT,
        Reason.DATASET_INVALID,
        Reason.DATASET_NOT_FOUND,
        Reason.DATASET_ACCESS_DENIED,
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_ACCESS_DENIED,
        Reason.OUTPUT_ACCESS_DENIED,
        Reason.NON_FINITE_LOSS,
        Reason.LOSS_DIVERGED,
        Reason.CUDA_OUT_OF_MEMORY,
        Reason.OOM_KILLED,
        Reason.STORAGE_FULL,
        Reason.STORAGE_ERROR,
        Reason.UPLOAD_FAILED,
        Reason.CHECKPOINT_INVALID,
        Reason.RESUME_MISMATCH,
        Reason.VERIFICATION_FAILED,
        Reason.GPU_FAULT,
        Reason.NODE_LOST,
        Reason.OUTPUT_LOCKED,
        Reason.STALLED,
        Reason.PEER_FAILED,
        Reason.EVICTED,
        Reason.RESTARTING,
        Reason.DEADLINE_EXCEEDED,
        Reason.PENDING_TIMEOUT,
        Reason.BACKOFF_LIMIT_EXCEEDED,
        Reason.RESULT_UNKNOWN,
        Reason.MULTI_CLUSTER_QUEUE,
        Reason.INTERNAL_ERROR,
    }
)
"""With one of them a run may end badly; what a trainer reports of a failure is among them."""
