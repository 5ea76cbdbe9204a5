"""Chart.yaml as a release publishes it: the annotations of Artifact Hub, by its docs/helm_annotations.md."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_trainer.spec.release import RELEASE
from releasing import chart_metadata
from releasing.errors import ReleaseError

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = yaml.safe_load((REPOSITORY / "helm/lora-finetune-operator/Chart.yaml").read_text())
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text()
SOURCE = "https://git.example.com/team/operator"


def annotation(chart: dict[str, Any], name: str) -> Any:
    return yaml.safe_load(chart["annotations"][f"artifacthub.io/{name}"])


@pytest.fixture(name="published")
def with_registry_and_source() -> dict[str, Any]:
    """As a release that says where it goes has it."""
    return chart_metadata.published(CHART, CHANGELOG, registry="registry.example.com/team/", source=SOURCE)


def test_what_artifact_hub_has_a_list_for_is_on_that_list(published: dict[str, Any]) -> None:
    """Another value is shown as nothing."""
    assert annotation(published, "category") == "ai-machine-learning"
    assert annotation(published, "license") == "Apache-2.0"
    assert annotation(published, "operatorCapabilities") in {
        "Basic Install",
        "Seamless Upgrades",
        "Full Lifecycle",
        "Deep Insights",
        "Auto Pilot",
    }
    assert published["version"] == published["appVersion"] == RELEASE
    assert all(isinstance(text, str) for text in published["annotations"].values())


def test_images_are_those_of_the_release(published: dict[str, Any]) -> None:
    """Artifact Hub scans them; it does not scan `latest`."""
    assert annotation(published, "images") == [
        {"name": name, "image": f"registry.example.com/team/{name}:{RELEASE}"}
        for name in ("lora-operator", "lora-preflight", "lora-trainer")
    ]


def test_links_lead_to_the_repository(published: dict[str, Any]) -> None:
    """And the chart's own fields do."""
    links = {link["name"]: link["url"] for link in annotation(published, "links")}
    assert links["Source"] == published["home"] == published["sources"][0] == SOURCE
    assert all(url.startswith(SOURCE) for url in links.values())


def test_changes_are_the_newest_ones_of_the_changelog(published: dict[str, Any]) -> None:
    """Whole entries, without links, whose targets are files."""
    changes = annotation(published, "changes")
    newest = CHANGELOG.split("\n## ")[1]
    assert len(changes) == newest.count("\n- ")
    assert not [change for change in changes if "](" in change["description"] or not change["description"]]
    assert {change["kind"] for change in changes} <= {"added", "changed", "deprecated", "removed", "fixed", "security"}


def test_a_changelog_is_read_by_its_headings() -> None:
    """Entries of several lines become one, older releases are left out, other headings are refused."""
    newer = "## 0.2.0\n\n### Added\n- A [b](c.md)\n  of two lines.\n- D.\n\n### Fixed\n- E.\n"
    text = f"# Changelog\n\n{newer}\n## 0.1.0\n\n### Removed\n- F.\n"
    assert list(chart_metadata.changes(text)) == [
        {"kind": "added", "description": "A b of two lines."},
        {"kind": "added", "description": "D."},
        {"kind": "fixed", "description": "E."},
    ]
    with pytest.raises(ReleaseError, match="'Improved': use one of added"):
        list(chart_metadata.changes("# C\n\n## 1\n\n### Improved\n- A.\n"))


def test_a_trial_names_no_place(published: dict[str, Any]) -> None:
    """What is not known is not guessed; the rest is the same."""
    trial = chart_metadata.published(CHART, CHANGELOG)
    added = {f"artifacthub.io/{name}" for name in ("images", "links")}
    assert published["annotations"].keys() - trial["annotations"].keys() == added
    assert published.keys() - trial.keys() == {"home", "sources"}
    assert trial["annotations"].keys() - CHART["annotations"].keys() == {"artifacthub.io/changes"}
