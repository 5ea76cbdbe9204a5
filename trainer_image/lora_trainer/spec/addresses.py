"""Addresses in a manifest: what is refused of them, by `uri`'s grammar."""

from lora_trainer.spec.api import Rule, found
from lora_trainer.spec.uri import (
    BUCKET,
    CLAIM_NAME,
    DNS_NAME,
    HUB_PART,
    KEY,
    OCI_PART,
    OCI_TAG,
    REGISTRY,
    REVISION,
    SEGMENT,
)

_SAFE_PATH = 'in letters, digits, "-", "_", "." and "=", without "." or ".." segments, double or trailing slashes'
_CONFIG_MAP, _CLIMBING_KEY = f"^configmap://{DNS_NAME}/{KEY}$", "/[.][.]?$"
OF_CONFIG_MAP = f"(self.matches('{_CONFIG_MAP}') && !self.matches('{_CLIMBING_KEY}'))"
"""By CEL, that a text is the address of a ConfigMap's key; `of_config_map` without it."""


def of_config_map(text: str) -> bool:
    """Whether a text is the address of a ConfigMap's key."""
    return found(_CONFIG_MAP, text) and not found(_CLIMBING_KEY, text)


def _of(scheme: str, *forms: str, never: str = "", says: str) -> Rule:
    """Of an address of the scheme that it is of each form, and holds `never` something else."""
    start = f"{scheme}://"
    patterns = [f"^{start}{form}" for form in forms]
    holds = " && ".join(
        [*(f"self.matches('{pattern}')" for pattern in patterns), *([f"!self.matches('{never}')"] if never else [])]
    )
    return Rule(
        cel=f"!self.startsWith('{start}') || ({holds})",
        message=says,
        quoted=True,
        broken=lambda text: (
            text.startswith(start)
            and not (all(found(pattern, text) for pattern in patterns) and not (never and found(never, text)))
        ),
    )


def _schemes(*schemes: str, forms: str) -> Rule:
    starts = tuple(f"{scheme}://" for scheme in schemes)
    return Rule(
        cel=" || ".join(f"self.startsWith('{start}')" for start in starts),
        message=f"has no supported scheme: write {forms}",
        quoted=True,
        broken=lambda text: not text.startswith(starts),
    )


def _bucket(example: str) -> Rule:
    return _of(
        "s3",
        f"{BUCKET}(/|$)",
        never="^s3://[^/]*[.][.]",
        says="names no valid bucket: after s3:// comes the name of a bucket (3 to 63 lower-case letters, digits, "
        f'"-" and "."), as in s3://training/{example}',
    )


def _claim(example: str) -> Rule:
    return _of(
        "pvc",
        f"{CLAIM_NAME}(/|$)",
        "[^/]{1,253}(/|$)",
        says="names no valid claim: after pvc:// comes the name of a PersistentVolumeClaim of this namespace "
        f'(lower-case letters, digits, "-" and "."), as in pvc://{example}',
    )


def _path(scheme: str, holder: str, what: str) -> Rule:
    return _of(
        scheme,
        f"[^/]*(/{SEGMENT})+$",
        never="/[.][.]?(/|$)",
        says=f"has no valid path after the {holder}: name {what}, {_SAFE_PATH}",
    )


def _hub(what: str) -> Rule:
    return _of(
        "hf",
        f"{HUB_PART}/{HUB_PART}(@{REVISION})?$",
        never="[.][.]",
        says="is not hf://org/name or hf://org/name@revision: write the organisation and the name as in the address "
        f'of the {what} on the Hub (letters, digits, ".", "_" and "-")',
    )


MODEL_RULES = (
    _schemes(
        "hf",
        "s3",
        "pvc",
        forms="hf://org/name[@revision] for a model on the Hub, s3://bucket/prefix for one in a bucket or "
        "pvc://claim/path for a folder on a volume",
    ),
    _bucket("models/llama"),
    _path("s3", "bucket", "the prefix below which the model lies"),
    _hub("model"),
    _claim("models/llama"),
    _path("pvc", "claim", "a folder inside the volume"),
)

DATASET_RULES = (
    _schemes(
        "hf",
        "s3",
        "pvc",
        "configmap",
        forms="pvc://claim/path for a file or folder on a volume, s3://bucket/path for one in a bucket, "
        "configmap://name/key for a small file, or hf://org/name[@revision] for a data set on the Hub",
    ),
    _bucket("chats.jsonl"),
    _path("s3", "bucket", "an object or a prefix"),
    _hub("data set"),
    _claim("data/chats.jsonl"),
    _path("pvc", "claim", "a file or folder inside the volume"),
    Rule(
        cel=f"!self.startsWith('configmap://') || {OF_CONFIG_MAP}",
        message="is not configmap://name/key: write the name of a ConfigMap of this namespace and one of its keys, as "
        "in configmap://chats/train.jsonl",
        quoted=True,
        broken=lambda text: text.startswith("configmap://") and not of_config_map(text),
    ),
)

OUTPUT_RULES = (
    _schemes(
        "pvc",
        "s3",
        "hf",
        "oci",
        forms="pvc://claim/path, s3://bucket/prefix, hf://org/name or oci://registry/repository:tag",
    ),
    _bucket("adapters/support-tone"),
    _path("s3", "bucket", "a prefix for the result"),
    _of(
        "hf",
        f"{HUB_PART}/{HUB_PART}$",
        never="[.][.]",
        says="is not hf://org/name: write the organisation and the name of the repository, without @revision, since "
        "the result becomes a new commit of main",
    ),
    _of(
        "oci",
        f"{REGISTRY}/{OCI_PART}(/{OCI_PART})*(:{OCI_TAG})?$",
        says="is not oci://registry/repository:tag: write the registry, a repository in lower case and perhaps a tag, "
        "as in oci://ghcr.io/acme/support-tone:v1",
    ),
    _claim("adapters/support-tone"),
    _path("pvc", "claim", "a folder inside the volume"),
)
