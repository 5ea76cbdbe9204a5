"""What the platform costs: starting and ending the local cluster, sizes of images, the pure tests, an edited line.

    .venv/bin/python benchmarks/footprint.py [--rounds 3]

Needs `make test` once before, so that everything is built: it measures warm times. It ends a running
local cluster and starts it again. Prints a table with medians of `--rounds`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "hack"))

from localcluster.client import HACK_CLUSTER, local
from localcluster.images import base_image
from localcluster.settings import DEFAULT_NAME, REGISTRY_PORT, places

EDITED = REPOSITORY / "trainer_image" / "lora_trainer" / "__init__.py"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json,application/vnd.docker.distribution.manifest.v2+json"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"machine: {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}\n")
    print("| what | measured |\n|---|---|")
    up, down = [], []
    for _ in range(rounds):
        down.append(seconds(lambda: cluster("down")))
        up.append(seconds(lambda: cluster("up")))
    row("cluster warm, `hack/cluster up` to node Ready", f"{statistics.median(up):.1f} s")
    row("`hack/cluster down`", f"{statistics.median(down):.1f} s")
    references = local(DEFAULT_NAME).images()
    for name, reference in references.items():
        row(f"{name} image, compressed", f"{compressed_bytes(reference) / 1e6:.1f} MB")
    name = f"localhost/{references['preflight'].rpartition('/')[2]}"
    unpacked = unpacked_bytes(name, base_image(), places(DEFAULT_NAME).cache / "images" / "storage")
    row("preflight image, unpacked, above its base", f"{unpacked / 1e6:.0f} MB")
    row("an edited line of the trainer, built and pushed", f"{edited_line():.1f} s")
    python = str(REPOSITORY / ".venv" / "bin" / "python")
    unit = [python, "-m", "pytest", "-q", "tests/unit", "tests/golden"]
    row("unit and golden tests", f"{statistics.median(seconds(lambda: run(unit)) for _ in range(rounds)):.1f} s")


def row(what: str, measured: str) -> None:
    """Print a row as soon as it is known."""
    print(f"| {what} | {measured} |", flush=True)


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time of an action."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def run(command: list[str]) -> None:
    """Run a command in the repository; what it says is shown only when it fails."""
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def cluster(command: str) -> None:
    """Run hack/cluster."""
    run([str(HACK_CLUSTER), command])


def compressed_bytes(reference: str) -> int:
    """Size of an image's layers as the registry holds and a node pulls them."""
    repository, _, tag = reference.partition("/")[2].rpartition(":")
    url = f"http://127.0.0.1:{REGISTRY_PORT}/v2/{repository}/manifests/{tag}"
    request = urllib.request.Request(url, headers={"Accept": _MANIFEST})
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the local registry
        manifest = json.load(answer)
    return sum(int(layer["size"]) for layer in manifest["layers"])


def unpacked_bytes(image: str, base: str, storage: Path) -> int:
    """Bytes of an image's layers above its base's, as a node unpacks them, by Buildah's `storage` of both."""
    # A registry has them packed by zstd, which Python does not unpack.
    images = json.loads((storage / "overlay-images" / "images.json").read_text(encoding="utf-8"))
    layers = json.loads((storage / "overlay-layers" / "layers.json").read_text(encoding="utf-8"))
    by_id = {layer["id"]: layer for layer in layers}

    def stack(name: str) -> dict[str, int]:
        found = next((one["layer"] for one in images if name in one.get("names", ())), None)
        if found is None:
            sys.exit(f"{name} is not in Buildah's storage {storage}: run hack/cluster images, which builds it")
        sizes = {}
        while found is not None:
            sizes[found] = by_id[found]["diff-size"]
            found = by_id[found].get("parent")
        return sizes

    below = stack(base)
    return sum(size for layer, size in stack(image).items() if layer not in below)


def edited_line() -> float:
    """Change one line of the trainer, build and push its image, and put the line back."""
    before = EDITED.read_text(encoding="utf-8")
    try:
        EDITED.write_text(f"{before}# edited at {time.time()}\n", encoding="utf-8")
        return seconds(lambda: local(DEFAULT_NAME).images("trainer"))
    finally:
        EDITED.write_text(before, encoding="utf-8")


if __name__ == "__main__":
    main()
