"""`lora-operator verify`, against an API that answers from a table and a server of metrics."""

import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from tests.unit.builders import CONFIG

from lora_operator import __main__ as command
from lora_operator.cluster.api import Api, ApiError
from lora_operator.running.self_check import Account
from lora_operator.running.verify_command import (
    VerifyError,
    faults_of_leader,
    faults_of_rights,
    faults_of_sample,
    parse_account,
)

ACCOUNT = Account(namespace="lora-system", name="lora")
SAMPLE = {"kind": "LoRAFineTune", "metadata": {"name": "first-run"}, "spec": {}}
WATCHED = dataclasses.replace(CONFIG, namespaces=("team-a",), lease_name="lora", lease_namespace="lora-system")


class Cluster:
    """Knows the definition and no Kueue, denies some rights, and answers a dry run."""

    def __init__(self, *denied: tuple[str, str], dry_run: ApiError | None = None) -> None:
        self.denied, self.dry_run = denied, dry_run
        self.sent: list[tuple[str, Mapping[str, Any]]] = []

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        if body is None:
            if "kueue" in path or "openapi" in path:
                raise ApiError(404, "NotFound", "no such group")
            return {"resources": [{"name": "lorafinetunes"}]}
        self.sent.append((path, body))
        if query is not None:
            assert (method, query) == ("POST", {"dryRun": "All"})
            if self.dry_run is not None:
                raise self.dry_run
            return {}
        asked = body["spec"]["resourceAttributes"]
        return {"status": {"allowed": (asked["verb"], asked["resource"]) not in self.denied}}


async def test_the_rights_of_the_operators_account_are_looked_for_and_not_those_of_who_asks() -> None:
    """By reviews in each namespace, which a Role allows; in the whole cluster where all are looked after."""
    listed, all_of_them = Cluster(), Cluster()
    assert await faults_of_rights(cast("Api", listed), ACCOUNT, WATCHED) == []
    assert await faults_of_rights(cast("Api", all_of_them), ACCOUNT, CONFIG) == []
    of_listed, of_all = (
        {path.removeprefix("/apis/authorization.k8s.io/v1/") for path, _ in cluster.sent}
        for cluster in (listed, all_of_them)
    )
    of_the_lease = "namespaces/lora-system/localsubjectaccessreviews"
    assert of_listed == {"namespaces/team-a/localsubjectaccessreviews", of_the_lease}
    assert of_all == {"subjectaccessreviews", of_the_lease}
    subjects = [body["spec"] for _, body in listed.sent]
    assert {subject["user"] for subject in subjects} == {"system:serviceaccount:lora-system:lora"}
    assert all("system:serviceaccounts:lora-system" in subject["groups"] for subject in subjects)


async def test_missing_rights_are_a_sentence_each() -> None:
    """That of a namespace, and that of the Lease."""
    cluster = Cluster(("create", "jobs"), ("update", "leases"))
    work, lease = await faults_of_rights(cast("Api", cluster), ACCOUNT, WATCHED)
    assert work.startswith("The operator may not create jobs.batch in namespace team-a: grant")
    assert lease.startswith("Leader election may not update leases.coordination.k8s.io in namespace lora-system")


async def test_a_sample_is_tried_under_a_name_that_no_run_has() -> None:
    """So that it does not fail where somebody has pasted it."""
    cluster = Cluster()
    assert await faults_of_sample(cast("Api", cluster), "lora-system", SAMPLE) == []
    ((path, body),) = cluster.sent
    assert path.endswith("/namespaces/lora-system/lorafinetunes")
    assert body["metadata"] == {"generateName": "verify-"}
    assert SAMPLE["metadata"] == {"name": "first-run"}


async def test_a_sample_that_is_refused_is_a_sentence_with_the_servers_words() -> None:
    """The definition of another release does not know a field."""
    refusal = ApiError(422, "Invalid", "spec.model: Required value")
    (sentence,) = await faults_of_sample(cast("Api", Cluster(dry_run=refusal)), "lora-system", SAMPLE)
    assert "in lora-system (spec.model: Required value): the definition is another release's" in sentence


async def test_a_policy_may_refuse_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """It is asked for nothing that the definition does not accept; other refusals count."""
    policy = "ValidatingAdmissionPolicy 'lora-runs' with binding 'lora-runs' denied request: spec.model.uri is ..."
    denied = ApiError(403, "Forbidden", f"lorafinetunes.lora-operator.io is forbidden: {policy}")
    assert await faults_of_sample(cast("Api", Cluster(dry_run=denied)), "lora-system", SAMPLE) == []
    assert "the policy lora-runs refuses it" in capsys.readouterr().out
    webhook = ApiError(403, "Forbidden", 'admission webhook "gate.example" denied the request')
    (sentence,) = await faults_of_sample(cast("Api", Cluster(dry_run=webhook)), "lora-system", SAMPLE)
    assert sentence.endswith("denied the request): the message names what refuses it")


@asynccontextmanager
async def metrics(*answers: str) -> AsyncIterator[str]:
    """A server that gives these answers one after the other, and the last of them from then on."""
    left = list(answers)

    async def answer(_: web.Request) -> web.Response:
        text = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(text=text, status=200 if text else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", answer)])
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    finally:
        await runner.cleanup()


async def test_one_of_several_operators_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service leads to any of them, so it is asked until the leader answers."""
    monkeypatch.setattr("lora_operator.running.verify_command._PAUSE_S", 0)
    async with metrics("# HELP\nlora_operator_leader 0.0\n", "# HELP\nlora_operator_leader 1.0\n") as url:
        assert await faults_of_leader(url, 10) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("# HELP\nlora_operator_leader 0.0\nlora_operator_leader_of 1.0\n", "has no lora_operator_leader of 1"),
        ("", "does not answer (status 503)"),
    ],
)
async def test_no_leader_is_a_sentence(monkeypatch: pytest.MonkeyPatch, answer: str, said: str) -> None:
    """Whether one stands by for ever or nobody answers."""
    monkeypatch.setattr("lora_operator.running.verify_command._PAUSE_S", 0.01)
    async with metrics(answer) as url:
        (sentence,) = await faults_of_leader(url, 0.1)
    assert sentence.startswith(f"{url} {said}, so no operator is at work: look at its pods")


async def test_an_address_that_nobody_listens_at_is_a_sentence() -> None:
    """And without a Service nobody is asked."""
    async with metrics("") as url:
        pass
    (sentence,) = await faults_of_leader(url, 0.1)
    assert f"{url} does not answer (Cannot connect to host 127.0.0.1" in sentence
    assert await faults_of_leader("", 0) == []


@pytest.mark.parametrize("text", ["lora", "/lora", "lora-system/", "a/b/c"])
def test_an_account_is_namespace_and_name(text: str) -> None:
    """As the chart gives it."""
    with pytest.raises(VerifyError, match="write NAMESPACE/NAME of the operator's service account"):
        parse_account(text)
    assert parse_account("lora-system/lora") == ACCOUNT


def test_faults_are_written_and_the_status_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for the other commands, each with the command's name."""
    settings = tmp_path / "config.yaml"
    settings.write_text("trainerImage: registry.example/t:1\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    arguments = ["verify", "--config", str(settings), "--account", "lora-system/lora", "--sample"]
    assert command.main([*arguments, str(tmp_path / "absent.yaml")]) == 1
    assert "absent.yaml" in capsys.readouterr().err
    sample = tmp_path / "sample.yaml"
    sample.write_text("metadata: {name: first-run}\n")
    assert command.main([*arguments, str(sample)]) == 1
    # The client library logs a warning before, wherever an earlier test has left the log.
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("lora-operator: There is no way to reach a Kubernetes API server")
