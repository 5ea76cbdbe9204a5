"""Who may read which repository, answered in the Hub's own words.

Private: without the right token the repository seems not to exist. Gated: its description is public, its files are not.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

Visibility = Literal["private", "gated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """Only requests with one of `tokens` may read the repository (private) or its files (gated)."""

    visibility: Visibility
    tokens: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error answer: the status and the Hub's X-Error-Code and X-Error-Message."""

    status: HTTPStatus
    code: str
    message: str


class RefusedError(Exception):
    """The request is answered with an error."""

    def __init__(self, answer: Refusal) -> None:
        """Carry the answer."""
        super().__init__(answer.message)
        self.answer = answer


RepoRestrictions = dict[str, Restriction]
"""Keyed by "models/<org>/<name>" or "datasets/<org>/<name>"; a repository that is not listed is public."""


def unknown_repository(token: str | None) -> Refusal:
    """The Hub tells an unknown visitor to log in, and only a known one that there is no such repository."""
    if token is None:
        return Refusal(status=HTTPStatus.UNAUTHORIZED, code="RepoNotFound", message="Invalid username or password.")
    return Refusal(status=HTTPStatus.NOT_FOUND, code="RepoNotFound", message="Repository not found")


def invalid_credentials(token: str | None) -> Refusal | None:
    """Refuse what cannot be a token of the Hub (they begin with "hf_"), on public repositories too, as the Hub does."""
    if token is None or token.startswith("hf_"):
        return None
    message = "Invalid credentials in Authorization header"
    return Refusal(status=HTTPStatus.UNAUTHORIZED, code="", message=message)


def refusal(restriction: Restriction | None, repo: str, token: str | None, *, for_content: bool) -> Refusal | None:
    """Return how a request with `token` for `repo` is refused, or None when it may go on.

    `for_content`: the request asks for a file's content, not for the description of the repository.
    """
    if restriction is None or token in restriction.tokens:
        return None
    if restriction.visibility == "private":
        return unknown_repository(token)
    if not for_content:
        return None
    if token is None:
        message = (
            f"Access to model {repo} is restricted. You must have access to it and be authenticated to access it. "
            "Please log in."
        )
        return Refusal(status=HTTPStatus.UNAUTHORIZED, code="GatedRepo", message=message)
    message = f"Access to model {repo} is restricted and you are not in the authorized list. Ask its owners for access."
    return Refusal(status=HTTPStatus.FORBIDDEN, code="GatedRepo", message=message)


def check_reader(
    restrictions: RepoRestrictions, key: str, token: str | None, *, is_there: bool, for_content: bool
) -> None:
    """Refuse unless the repository of `key` ("models/<org>/<name>") exists and `token` may read that much of it."""
    refused = refusal(restrictions.get(key), key.partition("/")[2], token, for_content=for_content)
    if refused is None and not is_there:
        refused = unknown_repository(token)
    if refused is not None:
        raise RefusedError(refused)


def read_restrictions(file: Path) -> RepoRestrictions:
    """Read `{"models/acme/secret": {"visibility": "gated", "tokens": ["hf_..."]}}`."""
    restrictions: RepoRestrictions = {}
    for repo, record in json.loads(file.read_text()).items():
        visibility: Visibility = "private" if record["visibility"] == "private" else "gated"
        restrictions[repo] = Restriction(visibility=visibility, tokens=frozenset(record["tokens"]))
    return restrictions
