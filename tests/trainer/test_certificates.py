"""Servers with a certificate that is not trusted: what is said of it, and what that leads to."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3
from tests.certificates import make_certificate
from tests.trainer.servers import Proxy

from lora_trainer.errors import TransientError
from lora_trainer.spec.uri import HubUri, OciUri, S3Uri
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.network import refused_certificate
from lora_trainer.storage.oci import Registry
from lora_trainer.storage.roles import Role
from lora_trainer.storage.s3 import connect


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server of an authority that nobody knows, with nothing behind it: no request comes so far."""
    with Proxy("http://127.0.0.1:9", make_certificate(tmp_path_factory.mktemp("tls"))) as server:
        yield server.url


def ask_hub(address: str, home: Path) -> object:
    """For a repository."""
    hub = Hub(environment={"HF_ENDPOINT": address}, cache=home, sleep=lambda seconds: None)
    return hub.repository(HubUri(repo="org/tiny"), Role.MODEL)


def ask_bucket(address: str, _home: Path) -> object:
    """For an object."""
    connection = connect(Role.DATASET, {"AWS_ENDPOINT_URL_S3": address}, backoff_s=0.01)
    return connection.item(S3Uri(bucket="data", key="train.jsonl"))


def ask_registry(address: str, _home: Path) -> object:
    """For a tag."""
    uri = OciUri(registry=address.removeprefix("https://"), repository="a/b", tag="v1")
    return Registry(uri, {}, backoff_s=0.01).manifest("v1")


@pytest.mark.parametrize("ask", [ask_hub, ask_bucket, ask_registry])
def test_an_authority_that_is_not_known_is_to_be_named(
    ask: Callable[[str, Path], object], address: str, tmp_path: Path
) -> None:
    """In the chart, or in the environment; it stays transient, since a ConfigMap may be filled meanwhile."""
    with pytest.raises(TransientError) as caught:
        ask(address, tmp_path)
    _, _, said = str(caught.value).rpartition(": the server's certificate is not trusted ")
    assert said.startswith("(self-signed certificate): have the chart's config.caBundleConfigMap name a bundle")
    assert "without a cluster set SSL_CERT_FILE" in said


def refusal(code: int, message: str) -> ssl.SSLCertVerificationError:
    """What OpenSSL finds wrong with a certificate, as Python raises it."""
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("code", "message", "remedy"),
    [
        (9, "certificate is not yet valid", "clock"),
        (10, "certificate has expired", "renewed"),
        (20, "unable to get local issuer certificate", "caBundleConfigMap"),
        (62, "Hostname mismatch, certificate is not valid for 'hub'.", "use a name that it is for"),
        (64, "IP address mismatch, certificate is not valid for '127.0.0.1'.", "use a name that it is for"),
    ],
)
def test_a_bundle_is_named_where_one_helps(code: int, message: str, remedy: str) -> None:
    """Not for a certificate that is out of time, or another server's."""
    said = refused_certificate(urllib3.exceptions.SSLError(refusal(code, message)))
    assert said is not None
    assert f"({message.rstrip('.')}): " in said
    assert remedy in said
    assert ("caBundleConfigMap" in said) == (code == 20)


def test_a_cause_is_sought_wherever_a_client_puts_it() -> None:
    """Chained or as an argument, also among errors that name each other; any other failure is none of a certificate."""
    outer, inner = ValueError("outer"), OSError("inner")
    outer.__cause__, inner.__context__ = inner, outer
    assert refused_certificate(outer) is None
    assert refused_certificate(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]")) is None
    inner.__cause__ = ssl.SSLCertVerificationError("a Mac says it so")
    assert "(its authority is not known): have" in str(refused_certificate(outer))
