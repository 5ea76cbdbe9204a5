"""What the site makes of the repository's Markdown; the strict build of `make lint` checks its links and navigation."""

import pytest

from docgen.site import DIAGRAM, PAGES, as_table, with_site_links


@pytest.mark.parametrize(
    ("uri", "text", "expected"),
    [
        pytest.param("watch.md", "[a](install.md#check)", "[a](install.md#check)", id="a page"),
        pytest.param("index.md", "[a](docs/install.md)", "[a](install.md)", id="a page, from the root"),
        pytest.param("gitops.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)", id="a page of the root"),
        pytest.param("runbooks/x.md", "[a](../watch.md)", "[a](../watch.md)", id="a page, from a folder"),
        pytest.param("runbooks/x.md", "[a](../../LICENSE)", "[a](../files/LICENSE)", id="a file"),
        pytest.param("index.md", "[examples](examples)", "examples", id="a folder"),
        pytest.param("watch.md", "[a](gone.md) [b](#here)", "[a](gone.md) [b](#here)", id="what does not exist stays"),
        pytest.param("watch.md", "```\n[a](../LICENSE)\n```\n", "```\n[a](../LICENSE)\n```\n", id="code"),
        pytest.param("watch.md", "Text:\n* a\n* b\n", "Text:\n\n* a\n* b\n", id="a list after a paragraph"),
    ],
)
def test_links_lead_to_pages_and_copies(uri: str, text: str, expected: str) -> None:
    """Relative to the page."""
    assert with_site_links(text, uri) == expected


def test_a_diagram_becomes_the_table_of_its_arrows() -> None:
    """Mermaid's script would come from another host."""
    text = "```mermaid\nstateDiagram-v2\n    state A {\n    }\n    [*] --> A: applied\n    A --> B: it runs\n```\n"
    assert DIAGRAM.sub(as_table, text).splitlines()[2:] == ["| (new) | A | applied |", "| A | B | it runs |"]


def test_pages_of_the_root_have_one_place_each() -> None:
    """No two pages of the site are made of one file."""
    assert len(set(PAGES.values())) == len(PAGES)
