"""What `benchmarks/footprint.py` says of an image: what a node has to unpack above the base that it has already."""

import json
from pathlib import Path

import pytest
from benchmarks.footprint import unpacked_bytes

PREFLIGHT, BASE = "localhost/lora-preflight:abc", "localhost/lora-base:def"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """As Buildah keeps it: images name their topmost layer, and layers the one below."""
    layers = [
        {"id": "base", "diff-size": 1000},
        {"id": "user", "parent": "base", "diff-size": 10},
        {"id": "venv", "parent": "user", "diff-size": 400},
        {"id": "other", "parent": "base", "diff-size": 7},
        {"id": "code", "parent": "venv", "diff-size": 3},
    ]
    images = [
        {"id": "1", "layer": "user"},
        {"id": "2", "layer": "base", "names": [BASE]},
        {"id": "3", "layer": "other", "names": ["localhost/lora-operator:abc"]},
        {"id": "4", "layer": "code", "names": [PREFLIGHT]},
    ]
    for name, found in (("layers", layers), ("images", images)):
        (tmp_path / f"overlay-{name}").mkdir()
        (tmp_path / f"overlay-{name}/{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return tmp_path


def test_what_a_node_unpacks_is_counted_above_the_base(storage: Path) -> None:
    """All layers of the one image down to those of the other, which are no part of it."""
    assert unpacked_bytes(PREFLIGHT, BASE, storage) == 413
    assert unpacked_bytes(BASE, BASE, storage) == 0


def test_an_image_that_is_not_there_is_named(storage: Path) -> None:
    """Somebody has removed it, or it came from elsewhere."""
    with pytest.raises(SystemExit, match=r"localhost/lora-x:1 is not in Buildah's storage .*: run hack/cluster images"):
        unpacked_bytes("localhost/lora-x:1", BASE, storage)
