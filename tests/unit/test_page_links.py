"""Links from one page of the documentation to another, and to other files, lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_links_to_files_and_headings_that_exist(page: Path) -> None:
    """An anchor is that of a heading, as GitHub makes it."""
    assert list(_broken(page, page.read_text(encoding="utf-8"))) == []


def test_links_that_lead_nowhere_are_found() -> None:
    """Among those that lead somewhere."""
    text = (
        "[a](trainer.md#how-a-run-ends) [b](trainer.md#how-it-ends) [c](gone.md) [d](#metrics) [e](https://example.com)"
    )
    page = REPOSITORY / "docs/trainer.md"
    assert list(_broken(page, text)) == ["trainer.md#how-it-ends", "gone.md"]


def _broken(page: Path, text: str) -> Iterator[str]:
    for link in _LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            yield link


def _anchors(page: Path) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
