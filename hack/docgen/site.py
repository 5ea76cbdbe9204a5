"""MkDocs hooks for what the site shows from outside of docs/: pages of the root, and files that pages link to.

GitHub and the site read the same Markdown. A link of it is a path in the repository; on the site it leads to the page
that is made of that file, or to a copy of the file. Where neither exists the link stays, and the strict build fails.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
# Page of the site -> file of the repository, for pages that do not lie in docs/.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security-policy.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "chart.md": "helm/lora-finetune-operator/README.md",
    "tests.md": "tests/README.md",
    "faults.md": "tests/faults/README.md",
}
COPIES = "files/"
_LINK = re.compile(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^(```.*?^```\s*)$", re.DOTALL | re.MULTILINE)
# GitHub begins a list or a table right after a paragraph, Python-Markdown after a blank line alone.
_TIGHT = re.compile(r"^((?![*|\-\s]|\d+\. ).+\n(?=\* |\| |1\. )|\|.+\n(?=\* ))", re.MULTILINE)
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ARROW = re.compile(r"^    (\S+) --> (\w+): (.+)$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and a copy of each file that a page links to."""
    for uri, source in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / source)))
    pages = [file for file in files if file.src_uri.endswith(".md")]
    linked = {target for file in pages for target in _targets(source_of(file.src_uri), file.content_string)}
    for target in sorted(linked):
        if uri_of(target) == COPIES + target and (REPOSITORY / target).is_file():
            files.append(File.generated(config, COPIES + target, content=(REPOSITORY / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The page with the site's links, and tables in the place of diagrams, whose script lies on another host."""
    return with_site_links(DIAGRAM.sub(as_table, markdown), page.file.src_uri)


def with_site_links(markdown: str, uri: str) -> str:
    """Links relative to the page of this URI; a folder of the repository has no page: its link becomes plain text."""

    def link(found: re.Match[str]) -> str:
        label, path, anchor = found.group(1), found.group(2), found.group(3) or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source_of(uri)), path))
        if not (REPOSITORY / target).exists():
            return found.group(0)
        if (REPOSITORY / target).is_dir():
            return label.strip("![]")
        return f"{label}({posixpath.relpath(uri_of(target), posixpath.dirname(uri) or '.')}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(link, _TIGHT.sub(r"\1\n", part)) for part in parts)


def source_of(uri: str) -> str:
    """The path in the repository of a page of the site."""
    return PAGES.get(uri, f"docs/{uri}")


def uri_of(path: str, pages: Mapping[str, str] = PAGES) -> str:
    """Where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return next((uri for uri, source in pages.items() if source == path), COPIES + path)


def _targets(source: str, markdown: str) -> Iterable[str]:
    for _, path, _ in _LINK.findall(markdown):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(source), path))


def as_table(diagram: re.Match[str]) -> str:
    rows = [f"| {a.replace('[*]', '(new)')} | {b} | {why} |" for a, b, why in _ARROW.findall(diagram.group(1))]
    return "\n".join(["| from | to | when |", "|---|---|---|", *rows])
