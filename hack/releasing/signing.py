"""Signatures, by cosign: statements about a manifest are signed, and read back only after they were verified."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from releasing import layout as oci
from releasing.artifacts import BUNDLE
from releasing.errors import ReleaseError
from releasing.layout import described

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from releasing.layout import Descriptor, Json, Layout

PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 - a name
_COSIGNS_IMAGE = {"kind": "dev.cosignproject.cosign/image"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key in a file, or in a variable (env://NAME); its password reaches cosign through the environment alone."""

    reference: str
    password: str

    def signs(self) -> tuple[str, ...]:
        return ("--key", self.reference, "--use-signing-config=false", "--tlog-upload=false")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    path: Path

    def trusts(self) -> tuple[str, ...]:
        return ("--key", str(self.path), "--insecure-ignore-tlog=true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who signs without a key: a workflow, by its address, as its issuer certifies it."""

    subject: str
    issuer: str

    def signs(self) -> tuple[str, ...]:
        return ("--yes",)

    def trusts(self) -> tuple[str, ...]:
        return ("--certificate-identity", self.subject, "--certificate-oidc-issuer", self.issuer)


Signer = Key | Identity
Trust = PublicKey | Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosign:
    """The program. Its log has what it says; passwords are in neither commands nor logs."""

    program: Path
    log: Path

    def generate(self, folder: Path, password: str) -> Key:
        """A new pair, cosign.key and cosign.pub, in a folder that has none."""
        self._run(("generate-key-pair", "--output-key-prefix", str(folder / "cosign")), password)
        return Key(reference=str(folder / "cosign.key"), password=password)

    def public_key(self, key: Key) -> str:
        return self._run(("public-key", "--key", key.reference), key.password)

    def sign(self, statement: bytes, signer: Signer) -> bytes:
        """The bundle of a signed statement."""
        with tempfile.TemporaryDirectory() as folder:
            source, bundle = Path(folder, "statement.json"), Path(folder, "bundle.json")
            source.write_bytes(statement)
            arguments = ("attest-blob", *signer.signs(), "--statement", str(source), "--bundle", str(bundle))
            self._run(arguments, signer.password if isinstance(signer, Key) else None)
            return bundle.read_bytes()

    def verified(self, layout: Layout, subject: Descriptor, predicate_type: str, trust: Trust) -> Json:
        """The predicate of a statement about the subject, signed by whom is trusted.

        Raises ReleaseError if there is none, or more than one that differ.
        """
        with tempfile.TemporaryDirectory() as folder:
            view(layout, subject, Path(folder))
            arguments = ("verify-attestation", *trust.trusts(), "--type", predicate_type, "--local-image", folder)
            try:
                output = self._run(arguments)
            except ReleaseError as error:
                raise ReleaseError(
                    f"{subject.digest} has no valid signature for {predicate_type} by {' '.join(trust.trusts()[:2])}:"
                    " do not use it unless you named the wrong signer.",
                    log=error.log,
                ) from error
        predicates = [found["predicate"] for found in statements(output, subject, predicate_type)]
        if not predicates or any(other != predicates[0] for other in predicates):
            raise ReleaseError(f"{subject.digest} has not one statement {predicate_type}, but {len(predicates)}.")
        predicate: Json = predicates[0]
        return predicate

    def _run(self, arguments: Sequence[str], password: str | None = None) -> str:
        environment = {**os.environ} if password is None else {**os.environ, PASSWORD: password}
        with self.log.open("ab") as log:
            log.write(f"$ cosign {' '.join(arguments)}\n".encode())
            log.flush()
            done = subprocess.run(
                [str(self.program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                check=False,
            )
        if done.returncode != 0:
            raise ReleaseError(f"`cosign {arguments[0]}` failed; it says why.", log=self.log)
        return done.stdout.decode()


def view(layout: Layout, subject: Descriptor, folder: Path) -> None:
    """A layout of one artifact, in the form that `cosign --local-image` reads.

    cosign reads every file of a layout into memory: the view has links to the manifests and bundles, and no layers.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    chosen = [subject]
    for referrer in layout.referrers(subject):
        content = layout.read_json(referrer)
        chosen += [referrer, *(described(layer) for layer in content["layers"] if layer["mediaType"] == BUNDLE)]
    for descriptor in chosen:
        path = layout.path(descriptor.digest)
        (blobs / path.name).symlink_to(path.resolve())
    (folder / "oci-layout").write_text(oci.MARKER)
    entry = subject.as_json() | {"annotations": _COSIGNS_IMAGE}
    (folder / "index.json").write_bytes(oci.encoded({"schemaVersion": 2, "manifests": [entry]}))


def statements(output: str, subject: Descriptor, predicate_type: str) -> list[Json]:
    """The statements of a type about the subject, of those that cosign prints once it has verified them."""
    found = []
    for line in output.splitlines():
        envelope: Mapping[str, str] = json.loads(line)
        statement: Json = json.loads(base64.b64decode(envelope["payload"]))
        digests = {f"sha256:{about.get('digest', {}).get('sha256')}" for about in statement["subject"]}
        if statement["predicateType"] == predicate_type and subject.digest in digests:
            found.append(statement)
    return found
