"""A check that could not fail is noticed: each time, another key and changed files have to be refused."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.unit.releases import ORIGIN

from releasing import artifacts, refusals
from releasing.errors import ReleaseError
from releasing.layout import Descriptor, Json, Layout, manifest
from releasing.signing import Cosign, Key, PublicKey, Trust

TRUSTED = PublicKey(path=Path("trusted.pub"))
SIGNED = b'{"signed": true, "padding": "so that a bit in the middle is of the text"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier(Cosign):
    """In the place of cosign: accepts by the key and by the bundles of the subject."""

    accepts: Callable[[Trust, list[bytes]], bool]

    def generate(self, folder: Path, password: str) -> Key:
        return Key(reference=str(folder), password=password)

    def verified(self, layout: Layout, subject: Descriptor, predicate_type: str, trust: Trust) -> Json:
        digests = [layout.read_json(one)["layers"][0]["digest"] for one in layout.referrers(subject)]
        if self.accepts(trust, [layout.path(digest).read_bytes() for digest in digests]):
            return {}
        raise ReleaseError(f"no {predicate_type}")


@pytest.fixture(name="layout")
def of_a_release(tmp_path: Path) -> Layout:
    layout = Layout(folder=tmp_path / "l")
    layout.create()
    for name in artifacts.NAMES:
        layer = layout.put(name.encode(), "text/plain")
        subject = layout.put_manifest(manifest([layer], annotations={}), artifacts.place(name))
        bundle = layout.put(SIGNED + name.encode(), artifacts.BUNDLE)
        layout.put_manifest(artifacts.bundle_manifest(subject, bundle, artifacts.SIGNED, ORIGIN.created))
    return layout


@pytest.mark.parametrize(
    ("accepts", "sentence"),
    [
        pytest.param(lambda trust, found: trust == TRUSTED and all(map(unchanged, found)), "", id="as cosign does"),
        pytest.param(lambda _, found: all(map(unchanged, found)), "was accepted with another key", id="any key"),
        pytest.param(lambda trust, _: trust == TRUSTED, "was accepted with changed signatures", id="any signature"),
    ],
)
def test_a_verifier_that_accepts_too_much_is_found_out(
    layout: Layout, accepts: Callable[[Trust, list[bytes]], bool], sentence: str
) -> None:
    """The release itself stays as it is."""
    verifier = Verifier(program=Path(), log=Path(), accepts=accepts)
    with pytest.raises(ReleaseError, match=sentence) if sentence else nullcontext():
        refusals.require(layout, verifier, TRUSTED)
    assert list(layout.problems()) == []


def test_a_layout_that_notices_no_change_is_found_out(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the client is changed once, in a copy."""
    verifier = Verifier(program=Path(), log=Path(), accepts=lambda *_: False)
    monkeypatch.setattr(Layout, "problems", lambda _: iter(()))
    with pytest.raises(ReleaseError, match="was not noticed"):
        refusals.require(layout, verifier, TRUSTED)


def unchanged(bundle: bytes) -> bool:
    return bundle.startswith(SIGNED)
