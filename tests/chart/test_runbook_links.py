"""Where an alert says that its runbook is, and what its commands need on a node."""

import re
from typing import Any

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import get_files
from tests.chart.objects import Render, only
from tests.chart.target import CHART

REPOSITORY = CHART.parents[1]
SITE = "https://docs.example.com/"


def links(render: Render, url: str) -> dict[str, str]:
    """The link of each alert, by its name."""
    rules: Any = only(render(metrics={"prometheusRule": {"enabled": True, "runbookURL": url}}), "PrometheusRule")
    (group,) = rules["spec"]["groups"]
    return {rule["alert"]: rule["annotations"]["runbook_url"] for rule in group["rules"] if "alert" in rule}


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://git.example.com/docs/runbooks", "https://git.example.com/docs/runbooks/LoRAOperatorDown.md"),
        ("https://git.example.com/docs/runbooks/", "https://git.example.com/docs/runbooks/LoRAOperatorDown.md"),
        (
            "https://wiki.example.com/%s?ref=main#%s",
            "https://wiki.example.com/LoRAOperatorDown?ref=main#LoRAOperatorDown",
        ),
    ],
)
def test_a_link_has_the_alerts_name_where_it_is_wanted(render: Render, url: str, link: str) -> None:
    """At the end, as the repository has the pages, or for each %s."""
    assert links(render, url)["LoRAOperatorDown"] == link


def test_links_to_the_projects_site_lead_to_its_pages(render: Render) -> None:
    """With the address that the value's description gives, which the site's strict build makes."""
    (url,) = re.findall(rf"`({SITE}[^`]*)`", (CHART / "values.schema.json").read_text())
    pages = {SITE + file.url for file in get_files(load_config(str(REPOSITORY / "mkdocs.yml")))}
    assert set(links(render, url).values()) <= pages


def test_a_runbook_reads_the_log_of_a_kernel_that_shows_it_to_the_privileged_alone() -> None:
    """As Debian's and Ubuntu's do (`kernel.dmesg_restrict`); kubectl's default profile has no such right."""
    pages = (page.read_text() for page in (REPOSITORY / "docs/runbooks").glob("*.md"))
    lines = [line for page in pages for line in page.splitlines() if "kubectl debug node/" in line and "dmesg" in line]
    assert lines
    assert [line for line in lines if " --profile=sysadmin " not in line] == []
