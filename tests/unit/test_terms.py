"""The documentation uses the field's terms, and none that tests/unit/terms.yaml lists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TERMS = [
    (re.compile(rf"\b(?:{term['avoid'].replace(' ', chr(92) + 's+')})\b", re.IGNORECASE), term["write"])
    for term in yaml.safe_load(Path(__file__).with_name("terms.yaml").read_text())
]
# Code, comments, targets of links: anything that is not prose.
NOT_PROSE = re.compile(r"^```.*?^```|`[^`]*`|<!--.*?-->|\]\([^)]*\)|https?:\S+", re.DOTALL | re.MULTILINE)
# The matrix of faults says what tests do, in the words of their code.
EXEMPT = {"CHANGELOG", "faults"}
PAGES = [
    page
    for page in sorted(
        [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("helm/*/README.md")]
    )
    if page.stem not in EXEMPT
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_avoids_the_listed_terms(page: Path) -> None:
    """Each is named with its line and what to write instead."""
    assert list(found(page.read_text(encoding="utf-8"))) == []


def test_a_listed_term_is_found_in_prose_alone() -> None:
    """Also over the end of a line; not in code, in targets of links, or within another term."""
    text = "A skin is fine, `kin` is\n[code](kin.md).\n```\nkin\n```\nRuns that go\non, nobody knows. <!-- kin -->\n"
    assert [line for line in found(text) if "kin" in line] == []
    assert sorted(line.partition(":")[0] for line in found(text)) == ["line 6", "line 7"]


def found(text: str) -> Iterator[str]:
    """Terms to avoid, in their order in the list."""
    prose = NOT_PROSE.sub(lambda part: re.sub(r"[^\n]", " ", part.group()), text)
    for pattern, write in TERMS:
        for match in pattern.finditer(prose):
            yield f"line {text.count(chr(10), 0, match.start()) + 1}: {match.group()!r}: write {write}"


BEFORE_THE_GUIDES = (
    ["README.md"]
    + [f"docs/{name}.md" for name in ("architecture", "fit", "gitops", "gpu", "install", "kueue")]
    + [f"docs/{name}.md" for name in ("local-cluster", "monitoring", "operations", "operator", "quickstart")]
    + [f"docs/{name}.md" for name in ("run-without-a-cluster", "trainer", "trainer-data", "trainer-model")]
    + [f"docs/{name}.md" for name in ("trainer-result", "yardsticks")]
)
"""The hand-written pages before the guides for users and administrators were written. They had 40,938 words.

Left out, though some are older: generated pages, docs/faults.md and the runbooks; docs/benchmarks.md,
docs/fit-accuracy.md and docs/hyperparameters.md, which report measurements and grow with them.
"""


def test_the_pages_keep_to_half_of_their_words() -> None:
    """What is added to them takes the place of what says less. Comments, which no reader sees, do not count."""
    texts = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in BEFORE_THE_GUIDES}
    words = {page: len(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).split()) for page, text in texts.items()}
    assert sum(words.values()) <= 40_938 // 2, words
