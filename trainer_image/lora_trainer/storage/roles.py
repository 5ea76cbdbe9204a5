"""What a remote address is for in a run: the field that names it, its credentials, and the reasons of its failures."""

import enum
import os

from lora_trainer.errors import AccessDeniedError, NotFoundError, StorageError, TrainerError, TransientError
from lora_trainer.spec.reasons import Reason


class Role(enum.StrEnum):
    """What an address is for; the rows that are held out have an address of their own, and the data set's Secret."""

    MODEL = "model"
    DATASET = "dataset"
    VALIDATION = "validation"
    OUTPUT = "output"

    @property
    def section(self) -> str:
        """The section of the resource that the address and its Secret stand in; also a kind of repository of a Hub."""
        return "dataset" if self is Role.VALIDATION else self.value

    @property
    def field(self) -> str:
        """The field, as messages name it."""
        return "dataset.validationUri" if self is Role.VALIDATION else f"{self.value}.uri"

    @property
    def prefix(self) -> str:
        """What the variables of this section's Secret begin with; without them the plain ones count."""
        return f"{self.section.upper()}_"

    def denied(self, sentence: str) -> AccessDeniedError:
        """Credentials are missing or do not suffice."""
        return AccessDeniedError(sentence, _DENIED[self])

    def missing(self, sentence: str) -> TrainerError:
        """There is nothing at the address, or no place for a result."""
        if self is Role.OUTPUT:
            return StorageError(sentence)
        return NotFoundError(sentence, Reason.MODEL_NOT_FOUND if self is Role.MODEL else Reason.DATASET_NOT_FOUND)


_DENIED = {
    Role.MODEL: Reason.MODEL_ACCESS_DENIED,
    Role.DATASET: Reason.DATASET_ACCESS_DENIED,
    Role.VALIDATION: Reason.DATASET_ACCESS_DENIED,
    Role.OUTPUT: Reason.OUTPUT_ACCESS_DENIED,
}


def or_in_environment(what: str) -> str:
    """The end of a remedy that names a Secret: where `what` belongs without a cluster. Empty in a pod."""
    if _in_pod():
        return ""
    return f"; without a cluster set {what} in the environment (a stored login is not used)"


def unreachable(role: Role, variable: str, value: str) -> str:
    """The remedy for a server out of reach: a `variable` of the environment, or the chart's `value`, from which a pod
    has it."""
    if not _in_pod():
        return f"check {variable}, proxy and network if this lasts"
    return (
        f"if this lasts, have the administrator set {value} or a proxy (defaults.environment) in the chart's values "
        f"and allow training pods' egress, or use a claim (pvc://) for {role.field}"
    )


def _in_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def upload_failed(error: TransientError) -> StorageError:
    """A publication that the network failed, after bounded retries. On a claim a retry finds the result; without one it
    went with the pod."""
    kept = "with a checkpoint claim nothing is lost: the next attempt uploads the same result"
    return StorageError(f"{error}; {kept}", Reason.UPLOAD_FAILED)
