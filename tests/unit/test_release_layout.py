"""The layout of a release: what is in it, what belongs to what, and that a changed file is noticed."""

import json
from base64 import b64encode
from pathlib import Path

import pytest
from tests.unit.releases import LOWER, ORIGIN, SITE, UPPER, image_in

from lora_trainer.spec.release import RELEASE
from releasing import artifacts, contents
from releasing.errors import ReleaseError
from releasing.layout import EMPTY, INDEX, MANIFEST, NAME, Layout, described, manifest
from releasing.refusals import flip
from releasing.signing import statements, view


def test_a_layout_that_was_not_touched_has_no_problems(tmp_path: Path) -> None:
    """It is what image-spec says: a marker, an index, files by digest."""
    layout, image = image_in(tmp_path / "l", LOWER, UPPER)
    assert list(layout.problems()) == []
    assert json.loads((layout.folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout.folder / "index.json").read_text())
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX)
    (entry,) = index["manifests"]
    assert entry == image.as_json()
    assert entry["annotations"] == {NAME: artifacts.place("lora-operator")}


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    """In a layer, a configuration or a manifest; so is a file that is shorter, or gone."""
    layout, _ = image_in(tmp_path / "l", LOWER, UPPER)
    for path in sorted((layout.folder / "blobs" / "sha256").iterdir()):
        before = path.read_bytes()
        flip(path)
        assert list(layout.problems()) == [f"sha256:{path.name} has other content"]
        path.write_bytes(before[:-1])
        (problem,) = layout.problems()
        assert f"has {len(before) - 1} bytes instead of {len(before)}" in problem
        path.unlink()
        assert list(layout.problems()) == [f"sha256:{path.name} is missing"]
        path.write_bytes(before)
    assert list(layout.problems()) == []


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:ab", "md5:" + "a" * 64, None])
def test_a_descriptor_without_a_digest_is_refused(digest: str | None) -> None:
    """It would name a file outside of the layout."""
    with pytest.raises(ReleaseError, match="make it anew"):
        described({"mediaType": MANIFEST, "digest": digest, "size": 2})


def test_a_folder_without_a_release_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """So is a name that the release lacks."""
    with pytest.raises(ReleaseError, match="`make release`"):
        Layout(folder=tmp_path).entries()
    layout, _ = image_in(tmp_path / "l", LOWER)
    with pytest.raises(ReleaseError, match=r"has no lora-trainer-"):
        layout.find(artifacts.place("lora-trainer"))


def test_a_name_is_given_to_one_manifest(tmp_path: Path) -> None:
    """The later one."""
    layout, first = image_in(tmp_path / "l", LOWER)
    second = layout.put_manifest(manifest([], annotations={}), artifacts.place("lora-operator"))
    assert layout.find(artifacts.place("lora-operator")) == second != first
    assert len(layout.entries()) == 1


@pytest.mark.parametrize("revision", ["abc", ""])
def test_an_image_names_its_origin(revision: str) -> None:
    """The commit, unless the tree had changes, and no base image, whose name is of the machine that built it."""
    built = {"layers": [1], "annotations": {"org.opencontainers.image.base.name": "localhost/lora-base:1"}}
    origin = artifacts.Provenance(created=ORIGIN.created, revision=revision)
    image = artifacts.image_manifest(built, "lora-operator", origin)
    assert image["layers"] == [1]
    names = {name.removeprefix("org.opencontainers.image."): text for name, text in image["annotations"].items()}
    expected = {"title": "lora-operator", "version": RELEASE, "licenses": "Apache-2.0", "created": ORIGIN.created}
    assert names == expected | ({"revision": revision} if revision else {})


def test_a_bundle_is_attached_as_cosign_attaches_it(tmp_path: Path) -> None:
    """The form is that of cosign's WriteAttestationNewBundleFormat, which cosign finds in registries."""
    layout, image = image_in(tmp_path / "l", LOWER)
    bundle = layout.put(b"{}{}", artifacts.BUNDLE)
    referrer = layout.put_manifest(artifacts.bundle_manifest(image, bundle, artifacts.SIGNED, ORIGIN.created))
    content = layout.read_json(referrer)
    assert content["artifactType"] == artifacts.BUNDLE == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert content["subject"] == {"mediaType": MANIFEST, "digest": image.digest, "size": image.size}
    assert content["config"]["mediaType"] == EMPTY
    assert content["annotations"]["dev.sigstore.bundle.predicateType"] == artifacts.SIGNED
    assert layout.referrers(image) == [referrer]
    assert referrer.artifact_type == artifacts.BUNDLE
    assert list(layout.problems()) == []


def test_cosigns_view_has_the_bundles_and_no_layer(tmp_path: Path) -> None:
    """cosign reads every file of it; the trainer's layers have gigabytes."""
    layout, image = image_in(tmp_path / "l", LOWER)
    bundle = layout.put(b"{}{}", artifacts.BUNDLE)
    referrer = layout.put_manifest(artifacts.bundle_manifest(image, bundle, artifacts.SIGNED, ORIGIN.created))
    view(layout, image, tmp_path / "view")
    files = {path.name for path in (tmp_path / "view" / "blobs" / "sha256").iterdir()}
    assert files == {one.digest.removeprefix("sha256:") for one in (image, referrer, bundle)}
    (entry,) = json.loads((tmp_path / "view" / "index.json").read_text())["manifests"]
    assert entry["digest"] == image.digest
    assert entry["annotations"] == {"kind": "dev.cosignproject.cosign/image"}


def test_of_cosigns_output_only_statements_about_the_subject_count(tmp_path: Path) -> None:
    """Not one of another type or about another manifest."""
    _, image = image_in(tmp_path / "l", LOWER)
    _, other = image_in(tmp_path / "m", UPPER)
    wanted = artifacts.statement(image, artifacts.SIGNED, {})
    signed = [wanted, artifacts.statement(other, artifacts.SIGNED, {}), artifacts.statement(image, "x", {})]
    output = "".join(json.dumps({"payload": b64encode(one).decode()}) + "\n" for one in signed)
    assert statements(output, image, artifacts.SIGNED) == [json.loads(wanted)]


def test_files_of_an_image_are_those_that_no_later_layer_removes(tmp_path: Path) -> None:
    """By whiteouts, which are files themselves; names that begin with a dot are names like others."""
    layout, image = image_in(
        tmp_path / "l", LOWER, UPPER, {"./.wh.var": "", f"{SITE}/kept/.wh..wh..opq": "", "var/new": ""}
    )
    found = contents.read(layout, image)
    assert found.paths == {
        f"{SITE}/torch-2.15.0.dist-info/METADATA",
        f"{SITE}/torch-2.15.0.dist-info/RECORD",
        "app/.hidden",
        "var/new",
    }
    assert found.records.keys() == {f"{SITE}/torch-2.15.0.dist-info/METADATA"}


def test_a_layer_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    """With the digest of the layer."""
    layout, _ = image_in(tmp_path / "l", LOWER)
    broken = layout.put(b"no archive", "application/vnd.oci.image.layer.v1.tar+gzip")
    image = layout.put_manifest(manifest([broken], annotations={}))
    with pytest.raises(ReleaseError, match=broken.digest):
        contents.read(layout, image)
