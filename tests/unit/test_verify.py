"""`lora-operator verify`, against an API that answers from a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from lora_operator import __main__ as command
from lora_operator.cluster.api import Api, ApiError
from lora_operator.controller import checks
from lora_operator.controller.checks import faults_of_leader, faults_of_sample

SAMPLE = {"kind": "LoRAFineTune", "metadata": {"name": "first-run"}, "spec": {}}


class Cluster:
    """Answers a dry run, and shows a Lease in one state after the other, the last of them from then on."""

    def __init__(self, *leases: Any, dry_run: ApiError | None = None) -> None:
        self.leases, self.dry_run = list(leases), dry_run
        self.sent: list[tuple[str, Mapping[str, Any]]] = []

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str], body: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert (method, query) == ("POST", {"dryRun": "All"})
        self.sent.append((path, body))
        if self.dry_run is not None:
            raise self.dry_run
        return {}

    async def get(self, _kind: object, namespace: str, name: str) -> dict[str, Any]:
        assert (namespace, name) == ("lora-system", "lora")
        lease = self.leases.pop(0) if len(self.leases) > 1 else self.leases[0]
        if lease is None:
            raise ApiError(404, "NotFound", "no Lease")
        holder, version = lease
        return {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder}}


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


async def led(*leases: Any, wait_s: float) -> list[str]:
    return await faults_of_leader(cast("Api", Cluster(*leases)), "lora-system", "lora", wait_s)


async def test_a_lease_that_is_renewed_has_a_leader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that somebody has just taken."""
    monkeypatch.setattr(checks, "_PAUSE_S", 0)
    assert await led(None, ("", "1"), ("lora-1", "2"), ("lora-1", "2"), ("lora-1", "3"), wait_s=10) == []
    assert capsys.readouterr().out == "ok: lora-1 leads, by the Lease lora-system/lora\n"


@pytest.mark.parametrize(
    ("lease", "said"),
    [(None, "nobody holds"), (("", "1"), "nobody holds"), (("lora-1", "1"), "lora-1 no longer renews")],
)
async def test_no_leader_is_a_sentence(monkeypatch: pytest.MonkeyPatch, lease: Any, said: str) -> None:
    """Whether none ever was, it gave the Lease back, or it died with it."""
    monkeypatch.setattr(checks, "_PAUSE_S", 0.01)
    (sentence,) = await led(lease, wait_s=0.1)
    assert sentence.startswith(f"No operator is at work, since {said} the Lease lora-system/lora: look at its pods")


def test_faults_are_written_and_the_status_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for the other commands, each with the command's name."""
    settings = tmp_path / "config.yaml"
    settings.write_text("trainerImage: registry.example/t:1\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    arguments = ["verify", "--config", str(settings), "--namespace", "lora-system", "--sample"]
    assert command.main([*arguments, str(tmp_path / "absent.yaml")]) == 1
    assert "absent.yaml" in capsys.readouterr().err
    sample = tmp_path / "sample.yaml"
    sample.write_text("metadata: {name: first-run}\n")
    assert command.main([*arguments, str(sample)]) == 1
    # The client library logs a warning before, wherever an earlier test has left the log.
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("lora-operator: There is no way to reach a Kubernetes API server")
