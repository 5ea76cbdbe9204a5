"""What a release consists of, and the manifests that describe it: pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from localcluster.imagespec import OPERATOR, PREFLIGHT, TRAINER
from lora_trainer.spec.release import RELEASE
from releasing import layout as oci

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from localcluster.imagespec import Image
    from releasing.layout import Descriptor, Json

IMAGES: tuple[Image, ...] = (OPERATOR, PREFLIGHT, TRAINER)
CHART = "lora-finetune-operator"
CLIENT = "lora-client"
NAMES = (*(image.repository for image in IMAGES), CHART, CLIENT)
CLIENT_TYPE = "application/vnd.lora-operator.client.v1"
# Of Helm: helm.sh/helm/v3/pkg/registry, constants.go.
CHART_CONFIG = "application/vnd.cncf.helm.config.v1+json"
CHART_LAYER = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
# Of cosign: WriteAttestationNewBundleFormat and CosignSignPredicateType.
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNED = "https://sigstore.dev/cosign/sign/v1"
BILL_OF_MATERIALS = "https://cyclonedx.org/bom"
TITLE = "org.opencontainers.image.title"
REQUIREMENTS = "requirements-client.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What every artifact says of its origin; `revision` is empty for a tree with changes that are not committed."""

    created: str
    revision: str

    def annotations(self, name: str) -> dict[str, str]:
        image = "org.opencontainers.image"
        facts = {
            TITLE: name,
            f"{image}.version": RELEASE,
            f"{image}.licenses": "Apache-2.0",
            f"{image}.created": self.created,
            f"{image}.revision": self.revision,
        }
        return {key: value for key, value in facts.items() if value}


def place(name: str) -> str:
    """The name of an artifact in the layout's index; in a registry it is name:RELEASE."""
    return f"{name}-{RELEASE}"


def image_manifest(built: Json, name: str, provenance: Provenance) -> Json:
    """The manifest of a built image with its origin, without the base image's name, which this machine alone knows."""
    return built | {"annotations": provenance.annotations(name)}


def chart_manifest(config: Descriptor, package: Descriptor, provenance: Provenance) -> Json:
    """As `helm push` makes it."""
    return oci.manifest([package], config=config, annotations=provenance.annotations(CHART))


def client_manifest(files: Sequence[Descriptor], provenance: Provenance) -> Json:
    return oci.manifest(files, annotations=provenance.annotations(CLIENT), artifact_type=CLIENT_TYPE)


def statement(subject: Descriptor, predicate_type: str, predicate: Json) -> bytes:
    """What is signed: an in-toto statement about a manifest."""
    algorithm, _, value = subject.digest.partition(":")
    return oci.encoded(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {algorithm: value}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def bundle_manifest(subject: Descriptor, bundle: Descriptor, predicate_type: str, created: str) -> Json:
    """What attaches a signed statement to its subject, where cosign looks for it."""
    annotations = {
        "org.opencontainers.image.created": created,
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": predicate_type,
    }
    return oci.manifest([bundle], annotations=annotations, subject=subject, artifact_type=BUNDLE)


def chart_components(images: Mapping[str, Descriptor]) -> list[str]:
    """Package URLs of the images that a chart of this release is for."""
    return [f"pkg:oci/{name}@{image.digest.replace(':', '%3A')}?tag={RELEASE}" for name, image in images.items()]
