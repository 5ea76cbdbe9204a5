"""The check before the first watch, against an API that answers from a table."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from lora_operator.cluster.api import Api, ApiError
from lora_operator.controller.checks import (
    LEASE_RIGHTS,
    RIGHTS,
    NoDefinitionError,
    SelfCheckError,
    can_look_after,
    check_definition,
    check_lease,
    check_rights,
    rights_used,
)

CRD = yaml.safe_load((Path(__file__).parents[2] / "crds/lorafinetunes.yaml").read_text())
SCHEMA: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


class TableApi:
    """Knows the definition or not, and denies some rights."""

    def __init__(
        self,
        *,
        definition: bool = True,
        denied: tuple[tuple[str, str], ...] = (),
        denied_in: tuple[str, ...] = (),
        code: int = 0,
    ) -> None:
        self.definition = definition
        self.denied = denied
        self.denied_in = denied_in
        self.code = code
        self.schema: dict[str, Any] = copy.deepcopy(SCHEMA)
        self.hides_openapi = 0
        self.namespaces: set[str] = set()
        self.named: set[tuple[str, str]] = set()

    def openapi(self) -> dict[str, Any]:
        """As the API server publishes the definition, beside its list and other groups' kinds."""
        if self.hides_openapi:
            raise ApiError(self.hides_openapi, "Unknown", "no")
        kinds = {"LoRAFineTune": self.schema, "LoRAFineTuneList": {"properties": {"items": {}}}}
        return {"components": {"schemas": {f"io.lora-operator.v1alpha1.{kind}": s for kind, s in kinds.items()}}}

    async def request(self, method: str, path: str, *, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if self.code:
            raise ApiError(self.code, "Unknown", "no")
        if body is None:
            if not self.definition:
                raise ApiError(404, "NotFound", "the server could not find the requested resource")
            return self.openapi() if path.startswith("/openapi/") else {"resources": [{"name": "lorafinetunes"}]}
        attributes = body["spec"]["resourceAttributes"]
        namespace = attributes.get("namespace", "")
        self.namespaces.add(namespace)
        self.named.add((attributes["verb"], attributes.get("name", "")))
        denied = (attributes["verb"], attributes["resource"]) in self.denied
        return {"status": {"allowed": not (denied and namespace in (self.denied_in or (namespace,)))}}


async def run(api: TableApi, *namespaces: str) -> list[str]:
    await check_definition(cast("Api", api))
    return await check_rights(cast("Api", api), namespaces, rights_used(kueue=False))


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


async def test_an_older_definition_is_named_with_fields_that_it_lacks_and_the_remedy() -> None:
    """In lists and maps, too; a few of many."""
    api = TableApi()
    status, spec = (api.schema["properties"][part]["properties"] for part in ("status", "spec"))
    del status["conditions"]["items"]["properties"]["reason"]
    with pytest.raises(
        NoDefinitionError, match=r"older than the operator, and lacks status\.conditions\.reason: apply"
    ):
        await run(api)
    del spec["lora"], spec["preflight"]
    sentence = (
        r"lacks spec\.lora, spec\.lora\.\w+, spec\.lora\.\w+ and \d+ more fields: apply crds/.*crds\.install=true"
    )
    with pytest.raises(NoDefinitionError, match=sentence):
        await run(api)


async def test_a_newer_definition_is_as_good() -> None:
    """It has all that the operator writes."""
    api = TableApi()
    api.schema["properties"]["status"]["properties"]["later"] = {"type": "string"}
    assert await run(api) == []


@pytest.mark.parametrize("code", [403, 404])
async def test_a_definition_that_cannot_be_compared_holds_nothing_up(code: int) -> None:
    """Discovery may be closed to service accounts, and follows a definition late."""
    api = TableApi()
    api.hides_openapi = code
    assert await run(api) == []


async def test_missing_rights_are_named_all_at_once() -> None:
    """The verb, the kind and the place of each."""
    api = TableApi(denied=(("create", "jobs"), ("list", "pods")))
    with pytest.raises(SelfCheckError, match=r"may not create jobs\.batch, list pods in namespace team"):
        await run(api, "team")
    with pytest.raises(SelfCheckError, match="in the whole cluster"):
        await run(api)


async def test_a_namespace_that_cannot_be_seen_is_left_out_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A team's namespace that is gone, or not there yet, stops nobody else."""
    api = TableApi(denied=(("list", "pods"), ("create", "jobs")), denied_in=("b",))
    assert await run(api, "a", "b") == ["b"]
    assert "may not create jobs.batch, list pods in namespace b: grant" in caplog.text
    assert "take a namespace that is gone from the list" in caplog.text
    assert not await can_look_after(cast("Api", api), "b", RIGHTS)
    assert await can_look_after(cast("Api", api), "a", RIGHTS)


async def test_a_namespace_in_which_a_write_is_missing_is_looked_after_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its runs say Forbidden, which they could not if nobody looked at them."""
    assert await run(TableApi(denied=(("create", "jobs"),), denied_in=("b",)), "a", "b") == []
    assert "may not create jobs.batch in namespace b" in caplog.text


async def test_of_many_namespaces_a_few_are_named() -> None:
    """A sentence stays one."""
    names = [f"team-{number}" for number in range(100)]
    with pytest.raises(SelfCheckError) as stated:
        await run(TableApi(denied=(("create", "jobs"),)), *names)
    assert "in namespace team-2; and in 97 more namespaces: grant" in str(stated.value)


async def test_rights_on_the_lease_are_asked_for_by_its_name() -> None:
    """As the role grants them; only its creation has no name yet."""
    api = TableApi()
    await check_lease(cast("Api", api), "lora-system", "lora")
    assert api.named == {("get", "lora"), ("create", ""), ("update", "lora")}
    assert api.namespaces == {"lora-system"}
    with pytest.raises(SelfCheckError, match=r"may not update leases\.coordination\.k8s\.io in namespace lora-system"):
        await check_lease(cast("Api", TableApi(denied=(("update", "leases"),))), "lora-system", "lora")


async def test_refused_credentials_are_distinguished_from_a_missing_definition() -> None:
    """401 has another remedy."""
    with pytest.raises(SelfCheckError, match="does not accept the operator's credentials"):
        await run(TableApi(code=401))


def test_no_right_touches_secrets_or_is_a_wildcard() -> None:
    """The operator is a deputy and stays narrow."""
    every = (*RIGHTS, *LEASE_RIGHTS)
    assert all(right.resource.plural not in ("secrets", "nodes") and right.verb != "*" for right in every)
    assert not [right for right in every if right.subresource == "exec"]
    assert len({str(right) for right in every}) == len(every)
