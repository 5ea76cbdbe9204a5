"""Addresses in a manifest: what the API server refuses of them, by `uri`'s grammar, and what reads them here."""

from lora_trainer.contract.api import Rule
from lora_trainer.contract.fields import Reader
from lora_trainer.contract.uri import (
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
    UriError,
    parse_uri,
)

_NO_DOTS = "without . or .. segments, double or trailing slashes"
_SAFE_PATH = 'in letters, digits, "-", "_", "." and "=", without "." or ".." segments, double or trailing slashes'


def read_model_address(section: Reader, key: str) -> str | None:
    """The base model's, None where it is absent; what is wrong with it is among the section's problems."""
    return _read(section, key, ("hf", "pvc", "s3"))


def read_dataset_address(section: Reader, key: str) -> str | None:
    """That of data; see `read_model_address`."""
    return _read(section, key, ("pvc", "configmap", "hf", "s3"))


def read_output_address(section: Reader, key: str) -> str | None:
    """The result's; see `read_model_address`."""
    return _read(section, key, ("pvc", "s3", "hf", "oci"))


def _read(section: Reader, key: str, schemes: tuple[str, ...]) -> str | None:
    text = section.text(key)
    if text is None:
        return None
    beginnings = tuple(f"{scheme}://" for scheme in schemes)
    if not text.startswith(beginnings):
        section.complain(key, text, f"must start with {' or '.join(beginnings)}")
        return text
    try:
        parse_uri(text)
    except UriError as error:
        section.complain(key, text, str(error))
    return text


def of_config_map() -> str:
    """By CEL, that a text is the address of a ConfigMap's key."""
    return f"(self.matches('^configmap://{DNS_NAME}/{KEY}$') && !self.matches('/[.][.]?$'))"


def _of(scheme: str, form: str, *, besides: str = "", shown: str, message: str) -> Rule:
    """Of an address of the scheme that it is of a form, and whatever else is said `besides`."""
    holds = f"self.matches('^{scheme}://{form}')" + (f" && {besides}" if besides else "")
    return Rule(cel=f"!self.startsWith('{scheme}://') || ({holds})", shown=f'"{{self}}" {shown}', message=message)


def _schemes(*schemes: str, forms: str, short: str) -> Rule:
    return Rule(
        cel=" || ".join(f"self.startsWith('{scheme}://')" for scheme in schemes),
        shown=f'"{{self}}" has no supported scheme: write {forms}',
        message=f"write {short}",
    )


def _bucket(example: str) -> Rule:
    return _of(
        "s3",
        f"{BUCKET}(/|$)",
        besides="!self.matches('^s3://[^/]*[.][.]')",
        shown="names no valid bucket: after s3:// comes the name of a bucket (3 to 63 lower-case letters, digits, "
        f'"-" and "."), as in s3://training/{example}',
        message="after s3:// comes the name of a bucket",
    )


def _claim(example: str) -> Rule:
    return _of(
        "pvc",
        f"{CLAIM_NAME}(/|$)",
        besides="self.matches('^pvc://[^/]{1,253}(/|$)')",
        shown="names no valid claim: after pvc:// comes the name of a PersistentVolumeClaim of this namespace "
        f'(lower-case letters, digits, "-" and "."), as in pvc://{example}',
        message="after pvc:// comes the name of a PersistentVolumeClaim of this namespace",
    )


def _path(scheme: str, holder: str, what: str, short: str = "") -> Rule:
    return _of(
        scheme,
        f"[^/]*(/{SEGMENT})+$",
        besides="!self.matches('/[.][.]?(/|$)')",
        shown=f"has no valid path after the {holder}: name {what}, {_SAFE_PATH}",
        message=f"name {short or what}, {_NO_DOTS}",
    )


def _hub(what: str) -> Rule:
    return _of(
        "hf",
        f"{HUB_PART}/{HUB_PART}(@{REVISION})?$",
        besides="!self.contains('..')",
        shown="is not hf://org/name or hf://org/name@revision: write the organisation and the name as in the address "
        f'of the {what} on the Hub (letters, digits, ".", "_" and "-")',
        message=f"write hf://org/name or hf://org/name@revision, as in the address of the {what} on the Hub",
    )


MODEL_RULES = (
    _schemes(
        "hf",
        "s3",
        "pvc",
        forms="hf://org/name[@revision] for a model on the Hub, s3://bucket/prefix for one in a bucket or "
        "pvc://claim/path for a folder on a volume",
        short="hf://org/name[@revision], s3://bucket/prefix or pvc://claim/path",
    ),
    _bucket("models/llama"),
    _path("s3", "bucket", "the prefix below which the model lies", "the prefix below which the model is"),
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
        short="pvc://claim/path, s3://bucket/path, configmap://name/key or hf://org/name[@revision]",
    ),
    _bucket("chats.jsonl"),
    _path("s3", "bucket", "an object or a prefix"),
    _hub("data set"),
    _claim("data/chats.jsonl"),
    _path("pvc", "claim", "a file or folder inside the volume"),
    Rule(
        cel=f"!self.startsWith('configmap://') || {of_config_map()}",
        shown='"{self}" is not configmap://name/key: write the name of a ConfigMap of this namespace and one of its '
        "keys, as in configmap://chats/train.jsonl",
        message="write configmap://name/key, as in configmap://chats/train.jsonl",
    ),
)

OUTPUT_RULES = (
    _schemes(
        "pvc",
        "s3",
        "hf",
        "oci",
        forms="pvc://claim/path, s3://bucket/prefix, hf://org/name or oci://registry/repository:tag",
        short="pvc://claim/path, s3://bucket/prefix, hf://org/name or oci://registry/repository:tag",
    ),
    _bucket("adapters/support-tone"),
    _path("s3", "bucket", "a prefix for the result"),
    _of(
        "hf",
        f"{HUB_PART}/{HUB_PART}$",
        besides="!self.contains('..')",
        shown="is not hf://org/name: write the organisation and the name of the repository, without @revision, since "
        "the result becomes a new commit of main",
        message="write hf://org/name, without @revision, since the result becomes a new commit of main",
    ),
    _of(
        "oci",
        f"{REGISTRY}/{OCI_PART}(/{OCI_PART})*(:{OCI_TAG})?$",
        shown="is not oci://registry/repository:tag: write the registry, a repository in lower case and perhaps a tag, "
        "as in oci://ghcr.io/acme/support-tone:v1",
        message="write oci://registry/repository:tag, as in oci://ghcr.io/acme/support-tone:v1",
    ),
    _claim("adapters/support-tone"),
    _path("pvc", "claim", "a folder inside the volume"),
)
