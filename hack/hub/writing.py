"""The requests that write to the Hub, and who may send them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote

from hub.access import Refusal, RefusedError, RepoRestrictions, Restriction, check_reader
from hub.uploads import Uploads

_WRITE_PATH = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/[^/]+")
_BATCH_PATH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_PART_PATH = re.compile(r"/lfs/([0-9a-f]+)/(?:part/(\d+)|complete)")

Writers = dict[str, frozenset[str]]
"""Token to the organisations whose repositories it may create and write; an empty set: it may read only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """A request as it came in: its path as sent, and the address that the server is reached at."""

    path: str
    token: str | None
    body: bytes
    base: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back, as JSON."""

    content: Mapping[str, object]
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)


def check_writer(writers: Writers, token: str | None, repo: str) -> None:
    """Refuse a token that may not write to `repo` ("org/name")."""
    if token is None or token not in writers:
        raise RefusedError(Refusal(status=HTTPStatus.UNAUTHORIZED, code="", message="Invalid username or password."))
    if repo.partition("/")[0] not in writers[token]:
        message = f'Forbidden: you don\'t have the rights to write to "{repo}".'
        raise RefusedError(Refusal(status=HTTPStatus.FORBIDDEN, code="", message=message))


def who_am_i(writers: Writers, token: str | None) -> dict[str, object]:
    """Describe the owner of a token."""
    if token is None or token not in writers:
        raise RefusedError(Refusal(status=HTTPStatus.UNAUTHORIZED, code="", message="Invalid username or password."))
    organisations = [{"name": name, "roleInOrg": "write"} for name in sorted(writers[token])]
    role = "write" if writers[token] else "read"
    return {"type": "user", "name": "tester", "orgs": organisations, "auth": {"accessToken": {"role": role}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Answers requests that write, or ask about what is going to be written."""

    uploads: Uploads
    writers: Writers
    restrictions: RepoRestrictions

    def answer(self, request: WriteRequest) -> Answer | None:
        """The answer; None where the request is another one. Raises RefusedError."""
        if request.path == "/api/validate-yaml":
            return Answer(content={"errors": [], "warnings": []})
        if request.path == "/api/repos/create":
            return self._create(request)
        if (found := _WRITE_PATH.fullmatch(request.path)) is not None:
            return self._commit(request, unquote(found.group(1)), found.group(2))
        if (found := _BATCH_PATH.fullmatch(request.path)) is not None:
            check_writer(self.writers, request.token, unquote(found.group(1)))
            return Answer(content=self.uploads.batch(request.base, json.loads(request.body)["objects"]))
        if (found := _PART_PATH.fullmatch(request.path)) is not None:
            return self._part(request, found.group(1), found.group(2))
        return None

    def _create(self, request: WriteRequest) -> Answer:
        wish: dict[str, str] = json.loads(request.body)
        repo = f"{wish['organization']}/{wish['name']}"
        check_writer(self.writers, request.token, repo)
        record = {"url": f"{request.base}/{repo}", "name": repo}
        if not self.uploads.create(repo):
            error = {"error": "You already created this model repo"}
            return Answer(content=record | error, status=HTTPStatus.CONFLICT)
        if wish.get("visibility") == "private" or wish.get("private"):
            tokens = frozenset({str(request.token)})
            self.restrictions[f"models/{repo}"] = Restriction(visibility="private", tokens=tokens)
        return Answer(content=record)

    def _commit(self, request: WriteRequest, repo: str, step: str) -> Answer:
        is_there = bool(self.uploads.repositories.revisions("models", repo))
        check_reader(self.restrictions, f"models/{repo}", request.token, is_there=is_there, for_content=True)
        check_writer(self.writers, request.token, repo)
        if step == "preupload":
            return Answer(content=self.uploads.modes(repo, json.loads(request.body)["files"]))
        commit = self.uploads.commit(repo, request.body.splitlines())
        address = f"{request.base}/{repo}/commit/{commit}"
        return Answer(content={"success": True, "commitOid": commit, "commitUrl": address})

    def _part(self, request: WriteRequest, oid: str, number: str | None) -> Answer:
        """The real Hub hands out signed addresses of its storage: no token is sent there."""
        if number is None:
            self.uploads.complete(oid)
            return Answer(content={})
        etag = self.uploads.put_part(oid, int(number), request.body)
        return Answer(content={}, headers={"ETag": f'"{etag}"'})
