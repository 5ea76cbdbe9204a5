"""The grammar of addresses: `hf://org/name[@revision]`, `s3://bucket/prefix`, `pvc://claim/path`,
`configmap://name/key`, `oci://registry/repository[:tag]`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# As texts, since the API server checks them by CEL, too (`addresses`).
DNS_NAME = "[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
CLAIM_NAME = "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
HUB_PART = "[A-Za-z0-9]([-A-Za-z0-9._]{0,94}[A-Za-z0-9])?"
REVISION = "[A-Za-z0-9][-A-Za-z0-9._/]{0,127}"
SEGMENT = "[A-Za-z0-9_.][-A-Za-z0-9_.=]{0,127}"
BUCKET = "[a-z0-9][-a-z0-9.]{1,61}[a-z0-9]"
REGISTRY = "[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?"
OCI_PART = "[a-z0-9]+([._-]{1,2}[a-z0-9]+)*"
OCI_TAG = "[A-Za-z0-9_][-A-Za-z0-9._]{0,127}"
KEY = "[A-Za-z0-9._-]{1,253}"
MAX_LENGTH = 512


class UriError(ValueError):
    """An address does not follow the grammar; the text is the rule and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubUri:
    """A repository on a Hugging Face Hub; `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf://{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimUri:
    """A path on a PersistentVolumeClaim of the run's namespace; `path` has no leading slash and is never empty."""

    claim: str
    path: str

    def __str__(self) -> str:
        return f"pvc://{self.claim}/{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapUri:
    """One key of a ConfigMap of the run's namespace."""

    name: str
    key: str

    def __str__(self) -> str:
        return f"configmap://{self.name}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Uri:
    """An object or a prefix of a bucket; `key` has no leading or trailing slash and is never empty."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OciUri:
    """An artefact in a registry."""

    registry: str
    repository: str
    tag: str = "latest"

    def __str__(self) -> str:
        return f"oci://{self.registry}/{self.repository}:{self.tag}"


Uri = HubUri | ClaimUri | ConfigMapUri | S3Uri | OciUri


def parse_uri(text: str) -> Uri:
    """Parse an address of any scheme. Raises `UriError`."""
    scheme, separator, rest = text.partition("://")
    if len(text) > MAX_LENGTH:
        raise UriError(f"must have at most {MAX_LENGTH} characters")
    if not separator or scheme not in _PARSERS:
        raise UriError("must start with hf://, s3://, pvc://, configmap:// or oci://")
    return _PARSERS[scheme](rest)


def at_commit(uri: str, commit: str | None) -> str:
    """An address of the Hub at a commit, whatever its branch points to by now; any other, or without one, as it is."""
    return f"{uri.partition('@')[0]}@{commit}" if commit and uri.startswith("hf://") else uri


def _hub(rest: str) -> HubUri:
    repo, at, revision = rest.partition("@")
    org, slash, name = repo.partition("/")
    if not slash or not all(re.fullmatch(HUB_PART, part) and ".." not in part for part in (org, name)):
        raise UriError("must be hf://organisation/name, optionally followed by @revision")
    if at and (not re.fullmatch(REVISION, revision) or ".." in revision):
        raise UriError("must have a branch, a tag or a commit after the @, for example hf://organisation/name@main")
    return HubUri(repo=repo, revision=revision or "main")


def _claim(rest: str) -> ClaimUri:
    claim, _, path = rest.partition("/")
    if not re.fullmatch(CLAIM_NAME, claim) or len(claim) > 253:
        raise UriError("must name a PersistentVolumeClaim, as in pvc://my-claim/folder")
    segments = path.split("/")
    if not path or any(not re.fullmatch(SEGMENT, s) or s in {".", ".."} for s in segments):
        raise UriError(
            "must have a path of letters, digits, '-', '_', '.' and '=' after the claim, "
            "without empty, '.' or '..' segments, as in pvc://my-claim/folder/file.jsonl"
        )
    return ClaimUri(claim=claim, path=path)


def _config_map(rest: str) -> ConfigMapUri:
    name, _, key = rest.partition("/")
    if not re.fullmatch(DNS_NAME, name) or not re.fullmatch(KEY, key) or key in {".", ".."}:
        raise UriError("must be configmap://name/key, as in configmap://support-desk/train.jsonl")
    return ConfigMapUri(name=name, key=key)


def _s3(rest: str) -> S3Uri:
    bucket, _, key = rest.partition("/")
    segments = key.split("/")
    if not re.fullmatch(BUCKET, bucket) or ".." in bucket:
        raise UriError(
            "must name a bucket of 3 to 63 lower-case letters, digits, '-' and '.', as in s3://bucket/folder"
        )
    if not key or any(not re.fullmatch(SEGMENT, s) or s in {".", ".."} for s in segments):
        raise UriError(
            "must have a path of letters, digits, '-', '_', '.' and '=' after the bucket, without empty, '.' or '..' "
            "segments, as in s3://bucket/folder/file.jsonl"
        )
    return S3Uri(bucket=bucket, key=key)


def _oci(rest: str) -> OciUri:
    registry, _, path = rest.partition("/")
    repository, colon, tag = path.partition(":")
    if not re.fullmatch(REGISTRY, registry) or not all(re.fullmatch(OCI_PART, part) for part in repository.split("/")):
        raise UriError(
            "must be oci://registry/repository:tag with a repository in lower case, as in oci://ghcr.io/acme/tone:v1"
        )
    if colon and not re.fullmatch(OCI_TAG, tag):
        raise UriError("must have a tag of letters, digits, '_', '.' and '-' after the colon")
    return OciUri(registry=registry, repository=repository, tag=tag or "latest")


_PARSERS: Mapping[str, Callable[[str], Uri]] = {
    "hf": _hub,
    "s3": _s3,
    "pvc": _claim,
    "configmap": _config_map,
    "oci": _oci,
}
