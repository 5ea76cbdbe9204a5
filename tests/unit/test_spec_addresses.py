"""Addresses of models, data and results: read, written and refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.spec.addresses import DATASET_RULES, MODEL_RULES, OUTPUT_RULES
from lora_trainer.spec.uri import (
    BUCKET,
    CLAIM_NAME,
    DNS_NAME,
    HUB_PART,
    KEY,
    MAX_LENGTH,
    OCI_PART,
    OCI_TAG,
    REGISTRY,
    REVISION,
    SEGMENT,
    ClaimUri,
    ConfigMapUri,
    HubUri,
    OciUri,
    S3Uri,
    UriError,
    parse_uri,
)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("hf://acme/base", HubUri(repo="acme/base")),
        ("hf://acme/base@v1/x", HubUri(repo="acme/base", revision="v1/x")),
        ("pvc://data/a/b.jsonl", ClaimUri(claim="data", path="a/b.jsonl")),
        ("configmap://data/a.jsonl", ConfigMapUri(name="data", key="a.jsonl")),
        ("s3://data.acme/a/b.jsonl", S3Uri(bucket="data.acme", key="a/b.jsonl")),
        ("oci://localhost:5000/a/b-c:v1", OciUri(registry="localhost:5000", repository="a/b-c", tag="v1")),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, uri: object) -> None:
    """Of every scheme."""
    assert parse_uri(text) == uri
    assert str(parse_uri(text)) == text


def test_the_revision_main_is_understood_and_not_repeated() -> None:
    """It is what no revision means."""
    assert str(parse_uri("hf://acme/base@main")) == "hf://acme/base"


@pytest.mark.parametrize("text", ["hf://a/..", "configmap://a/..", "pvc://a//b", "pvc://a/b/", "ftp://a/b"])
def test_an_address_that_could_lead_elsewhere_is_refused(text: str) -> None:
    """No empty segments, no dots."""
    with pytest.raises(UriError):
        parse_uri(text)


def test_an_address_has_a_bounded_length() -> None:
    """The reader of the manifest checks the same before."""
    with pytest.raises(UriError, match="at most 512"):
        parse_uri("pvc://a/" + "b" * 600)


PATH = f"(/{SEGMENT})+"
ADDRESSES = (
    f"hf://{HUB_PART}/{HUB_PART}(@{REVISION})?",
    f"pvc://{CLAIM_NAME}{PATH}",
    f"s3://{BUCKET}{PATH}",
    f"configmap://{DNS_NAME}/{KEY}",
    f"oci://{REGISTRY}/{OCI_PART}(/{OCI_PART})*(:{OCI_TAG})?",
)


@given(st.one_of([st.from_regex(pattern, fullmatch=True) for pattern in ADDRESSES]))
def test_every_address_that_the_api_server_accepts_is_understood(text: str) -> None:
    """Otherwise a run would fail after it was accepted."""
    accepted = [all(rule.allows(text) for rule in rules) for rules in (MODEL_RULES, DATASET_RULES, OUTPUT_RULES)]
    assert len(text) > MAX_LENGTH or not any(accepted) or parse_uri(text)
