"""The check before the first watch, against an API that answers from a table."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from lora_operator.api import Api, ApiError
from lora_operator.self_check import RIGHTS, SelfCheckError, check


class TableApi:
    """Knows the definition or not, and denies some rights."""

    def __init__(self, *, definition: bool = True, denied: tuple[tuple[str, str], ...] = (), code: int = 0) -> None:
        self.definition = definition
        self.denied = denied
        self.code = code
        self.namespaces: set[str] = set()

    async def request(self, method: str, path: str, *, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if self.code:
            raise ApiError(self.code, "Unknown", "no")
        if body is None:
            if not self.definition:
                raise ApiError(404, "NotFound", "the server could not find the requested resource")
            return {"resources": [{"name": "lorafinetunes"}]}
        attributes = body["spec"]["resourceAttributes"]
        self.namespaces.add(attributes.get("namespace", ""))
        return {"status": {"allowed": (attributes["verb"], attributes["resource"]) not in self.denied}}


async def run(api: TableApi, *namespaces: str) -> None:
    await check(cast("Api", api), namespaces)


async def test_a_cluster_that_allows_everything_passes() -> None:
    """Asked for the whole cluster once, or for each namespace."""
    everywhere, some = TableApi(), TableApi()
    await run(everywhere)
    await run(some, "a", "b")
    assert (everywhere.namespaces, some.namespaces) == ({""}, {"a", "b"})


async def test_a_missing_definition_is_named_with_the_remedy() -> None:
    """What to apply, in one sentence."""
    with pytest.raises(SelfCheckError, match=r"lorafinetunes\.lora-operator\.io .*apply crds/lorafinetunes\.yaml"):
        await run(TableApi(definition=False))


async def test_missing_rights_are_named_all_at_once() -> None:
    """The verb, the kind and the place of each."""
    api = TableApi(denied=(("create", "jobs"), ("list", "pods")))
    with pytest.raises(SelfCheckError, match=r"may not create jobs\.batch, list pods in namespace team"):
        await run(api, "team")
    with pytest.raises(SelfCheckError, match="in the whole cluster"):
        await run(api)


async def test_refused_credentials_are_told_from_a_missing_definition() -> None:
    """401 has another remedy."""
    with pytest.raises(SelfCheckError, match="does not accept the operator's credentials"):
        await run(TableApi(code=401))


def test_no_right_touches_secrets_or_is_a_wildcard() -> None:
    """The operator is a deputy and stays narrow."""
    assert all(right.resource.plural != "secrets" and right.verb != "*" for right in RIGHTS)
    assert len({str(right) for right in RIGHTS}) == len(RIGHTS)
