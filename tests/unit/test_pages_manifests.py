"""The manifests that the pages show can be applied one after the other: what one uses, another one makes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_trainer.spec.manifest import RunOptions, train_config

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("install", "kueue", "quickstart", "gitops", "run-without-a-cluster")),
)
BLOCK = re.compile(r"```yaml\n(.*?)```|<<'YAML'\n(.*?)\nYAML\n", re.DOTALL)
GATED = ("hf://meta-llama/",)
Manifest = dict[str, Any]


def manifests(page: str) -> Iterator[Manifest]:
    """Every object with a kind in the blocks of a page."""
    for shown in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        for document in yaml.safe_load_all("".join(shown)):
            if isinstance(document, dict) and "kind" in document:
                yield document


RUNS = [(page, found) for page in PAGES for found in manifests(page) if found["kind"] == "LoRAFineTune"]


@pytest.mark.parametrize(("page", "run"), RUNS, ids=[f"{page}-{number}" for number, (page, _) in enumerate(RUNS)])
def test_a_run_on_a_page_is_valid_and_may_read_its_model(page: str, run: Manifest) -> None:
    """A gated model without a Secret ends with ModelAccessDenied, which nobody wants to learn from an example."""
    assert train_config(run, RunOptions(uid="u", strict=True))
    model = run["spec"]["model"]
    assert "secretRef" in model or not model["uri"].startswith(GATED), page


def test_each_claim_that_the_installation_mounts_is_made_there() -> None:
    """A pod that names one that nobody made waits for ever."""
    found = list(manifests("docs/install.md"))
    made = {it["metadata"]["name"] for it in found if it["kind"] == "PersistentVolumeClaim"}
    volumes = [volume for it in found if it["kind"] == "Pod" for volume in it["spec"]["volumes"]]
    mounted = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes}
    assert mounted
    assert mounted <= made


def test_the_pod_that_the_installation_copies_with_fits_a_teams_quota() -> None:
    """Kubernetes refuses one that does not state what the quota counts."""
    quota = next(yaml.safe_load_all((ROOT / "examples/team.yaml").read_text(encoding="utf-8")))["spec"]["hard"]
    (pod,) = (it for it in manifests("docs/install.md") if it["kind"] == "Pod")
    resources = pod["spec"]["containers"][0].get("resources", {})
    stated = {f"{half}.{name}" for half, amounts in resources.items() for name in amounts}
    assert {counted for counted in quota if "/" not in counted} <= stated


def test_the_trainers_images_have_the_command_of_the_pages() -> None:
    """For whoever opens a shell in a pod: what each image writes starts the trainer's own command line."""
    text = (ROOT / "trainer_image/Dockerfile").read_text(encoding="utf-8")
    written = re.findall(
        r"RUN printf '(.*)' > /usr/local/bin/lora-trainer .*\n    && chmod 755 /usr/local/bin/lora-trainer", text
    )
    assert written == ['#!/bin/sh\\nexec python -m lora_trainer.cli "$@"\\n'] * 2
    assert "/usr/local/bin:" in text.partition("ENV PATH=")[2].splitlines()[0]
