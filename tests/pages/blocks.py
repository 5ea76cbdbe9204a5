"""The fenced code blocks of README.md, CONTRIBUTING.md and docs/, and why no test reads one, where none does.

Pages that `hack/docs` writes are left out: `make lint` holds them against their sources, blocks included.
"""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_FENCED = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"<!-- Not run: (?P<reason>(?:(?!-->).)+?) -->\s*\Z", re.DOTALL)
_HERE_DOCUMENT = re.compile(r"<<'YAML'\n(.*?)^YAML$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A code block; `line` is that of its opening fence.

    `reason` says why no test reads its commands; empty otherwise.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> str:
        """What is typed into a shell; empty where the block is none."""
        if self.language == "sh":
            return self.text
        lines = self.text.splitlines() if self.language == "console" else ()
        return "".join(f"{line[2:]}\n" for line in lines if line.startswith("$ "))

    @property
    def output(self) -> str:
        """What is shown of what a program prints."""
        if self.language not in ("console", "text", ""):
            return ""
        return "".join(f"{line}\n" for line in self.text.splitlines() if not line.startswith("$ "))

    @property
    def yaml(self) -> list[str]:
        """Texts that are YAML: the block, or what its commands are given."""
        return [self.text] if self.language == "yaml" else _HERE_DOCUMENT.findall(self.commands)


def blocks_of(page: str, text: str) -> list[Block]:
    """The blocks of a page in their order. Raises ValueError for a fence that is not closed as it was opened."""
    found = [
        Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            text=re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            reason=_reason(text[: match.start()]),
        )
        for match in _FENCED.finditer(text)
    ]
    fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    if fences != 2 * len(found):
        raise ValueError(f"{page}: {fences} fences make no {len(found)} blocks: close each as it is opened")
    return found


def _reason(before: str) -> str:
    found = _REASON.search(before)
    return " ".join(found["reason"].split()) if found else ""


def pages() -> dict[str, str]:
    """The text of each page that people write, by its path in the repository."""
    paths = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    texts = {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in paths}
    return {page: text for page, text in texts.items() if not text.startswith("<!-- Generated ")}


BLOCKS = [block for page, text in pages().items() for block in blocks_of(page, text)]


def block(page: str, begin: str) -> Block:
    """The only block of a page in which a line begins so."""
    (found,) = (each for each in BLOCKS if each.page == page and f"\n{begin}" in f"\n{each.text}")
    return found
