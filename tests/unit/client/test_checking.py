"""`lora validate`: good is what the API server took, and nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.client.resources import resource
from tests.unit.client.test_refusals import POLICY, RIGHT

from lora_client.cluster.connection import ApiError, Cluster
from lora_client.interface import LoRAClient
from lora_client.output import Form
from lora_client.verbs.changing import submit, validate
from lora_client.verbs.checking import check
from lora_client.views.refusals import Refusal

Object = dict[str, Any]


class Server(Cluster):
    """Answers with these refusals, one after the other, and takes what comes after them."""

    def __init__(self, *refusals: Refusal, there: bool = False) -> None:
        self.namespace = "team-a"
        self.refusals = list(refusals)
        self.there = there
        self.missing: list[str] = []
        self.stored: Object = {}

    def may_exist(self, plural: str, name: str) -> bool:
        return f"{plural}/{name}" not in self.missing

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        if method == "GET":
            if not self.there:
                raise ApiError(refused(404, "NotFound", "not found"))
            return {}
        assert query is not None
        if "dryRun" not in query:
            return self.stored
        assert query["dryRun"] == "All"
        if self.refusals:
            raise ApiError(self.refusals.pop(0))
        return {}


def refused(code: int, reason: str, message: str) -> Refusal:
    """Without causes, as a webhook answers."""
    return Refusal(code=code, reason=reason, message=message)


DENIED = 'admission webhook "x" denied the request: no'
UNKNOWN = refused(400, "BadRequest", 'strict decoding error: unknown field "spec.rang"')


def manifest(**spec: Any) -> Object:
    """What a person writes: nothing that the server added."""
    whole = resource(**spec)
    return {**whole, "metadata": {"name": "tone"}}


def validated(tmp_path: Path, server: Server, form: Form = Form.TEXT) -> int:
    """The exit status of the command."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(manifest()))
    return validate(server, str(path), form, asked=False)


@pytest.mark.parametrize("code", [400, 422])
def test_a_manifest_that_a_webhook_denies_is_not_good(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most denials have no code, which the API server takes for 400; and none has causes."""
    denial = refused(code, "Denied", DENIED)
    assert validated(tmp_path, Server(denial, denial)) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"The API server refused this ({code} Denied): {DENIED}\n")


def test_a_denial_is_listed_with_the_field_that_is_unknown() -> None:
    """Unknown fields come first, and what is denied for all that shows at the second look."""
    found = check(Server(UNKNOWN, refused(400, "BadRequest", DENIED)), manifest()).problems
    assert [problem.partition(":")[0] for problem in found] == [
        "spec.rang",
        "The API server refused this (400 BadRequest)",
    ]


@pytest.mark.parametrize("first", [(), (refused(409, "AlreadyExists", "exists"),)], ids=["new", "known"])
@pytest.mark.parametrize("message", [POLICY, DENIED])
def test_what_a_policy_forbids_is_a_problem_of_the_manifest(
    message: str, first: tuple[Refusal, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listed with the others, of a new run and of one that is changed; the chart's own policies answer so."""
    forbidden = refused(403, "Forbidden", message)
    want = f"The API server refused this: {message}"
    unknown, denied = check(Server(UNKNOWN, *first, forbidden), manifest()).problems
    assert (unknown.partition(":")[0], denied) == ("spec.rang", want)
    assert validated(tmp_path, Server(*first, forbidden), Form.JSON) == 1
    assert json.loads(capsys.readouterr().out) == {"valid": False, "problems": [want], "notes": []}


@pytest.mark.parametrize("code", [400, 403])
def test_what_is_refused_of_new_runs_alone_does_not_hold_for_one_that_is_there(code: int) -> None:
    """A quota, a policy or a webhook for creations is asked before the API server finds the name taken."""
    refusal = refused(code, "Forbidden", 'admission webhook "x" denied the request: no more runs')
    assert check(Server(refusal, there=True), manifest()).problems == ()
    (problem,) = check(Server(refusal, refusal, there=True), manifest()).problems
    assert "no more runs" in problem


@pytest.mark.parametrize(
    "refusal",
    [refused(403, "Forbidden", RIGHT), refused(403, "Unknown", "<html> This address is blocked </html>")],
    ids=["right", "proxy"],
)
@pytest.mark.parametrize("first", [(), (refused(409, "AlreadyExists", "exists"),)], ids=["new", "known"])
def test_who_may_not_ask_learns_nothing_of_the_manifest(refusal: Refusal, first: tuple[Refusal, ...]) -> None:
    """Nor whoever is behind a proxy that lets nothing through."""
    with pytest.raises(ApiError) as error:
        check(Server(*first, refusal), manifest())
    assert error.value.refusal == refusal


def test_what_the_server_takes_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for whoever reads JSON."""
    assert validated(tmp_path, Server(), Form.JSON) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "problems": [], "notes": []}


def test_a_name_that_the_server_would_make_is_refused() -> None:
    """It would take the manifest, and `run` could not apply it."""
    unnamed = manifest()
    unnamed["metadata"] = {"generateName": "tone-"}
    first, second = check(Server(), unnamed).problems
    assert first.startswith("metadata.name is missing: must be")
    assert second == "metadata.generateName is tone-: is not taken here, name the run with metadata.name"


MADE = "hf-token -n team-a --from-literal=HF_TOKEN=hf_... makes it"


def test_what_a_run_would_wait_for_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what makes it; what cannot be looked at is not."""
    server = Server()
    server.missing = ["secrets/hf-token", "secrets/keys", "persistentvolumeclaims/adapters", "configmaps/rows"]
    found = check(
        server,
        manifest(
            dataset={
                "uri": "configmap://rows/a.jsonl",
                "validationUri": "hf://acme/held-out",
                "secretRef": {"name": "keys"},
            },
            output={"uri": "pvc://adapters/tone"},
            checkpoint={"volumeClaimName": "there"},
        ),
    )
    assert found.problems == ()
    assert [text.partition(" in team-a, which ")[::2] for text in found.notes] == [
        (
            "There is no ConfigMap rows",
            "spec.dataset.uri names: kubectl create configmap rows -n team-a --from-file=a.jsonl=FILE makes it",
        ),
        (
            "There is no claim adapters",
            "spec.output.uri names: create a PersistentVolumeClaim of this name, with room for checkpoints and adapter",
        ),
        (
            "There is no Secret hf-token",
            f"spec.model.secretRef names: kubectl create secret generic {MADE}",
        ),
        ("There is no Secret keys", "spec.dataset.secretRef names: create it, or correct the name"),
    ]
    assert validated(tmp_path, server) == 0
    assert capsys.readouterr().err.startswith("Note: There is no claim adapters in team-a")


@pytest.mark.parametrize(("code", "there"), [(404, False), (403, True), (500, True)])
def test_what_may_not_be_looked_at_may_exist(code: int, *, there: bool) -> None:
    """And of a Secret its metadata alone is asked for."""
    asked: list[object] = []

    class Refusing(Cluster):
        def __init__(self) -> None:
            self.namespace = "team-a"

        def request(self, method: str, path: str, **given: Any) -> Object:
            asked.append((method, path, given))
            raise ApiError(refused(code, "x", "x"))

    assert Refusing().may_exist("secrets", "hf-token") is there
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    assert asked == [("GET", "/api/v1/namespaces/team-a/secrets/hf-token", {"accept": accept})]


def test_run_says_what_validate_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python, too, and starts it: the run waits."""
    server = Server()
    server.missing = ["secrets/hf-token"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(manifest()))
    server.stored = resource()
    stored = submit(server, str(path), Form.TEXT, asked=False, follow=False)
    assert stored["metadata"]["name"] == "tone"
    assert "Note: There is no Secret hf-token in team-a" in capsys.readouterr().err
    monkeypatch.setattr("lora_client.runs.connect", lambda *_: server)
    assert LoRAClient().run(manifest(), name="tone").name == "tone"  # type: ignore[arg-type]
    assert "Note: There is no Secret hf-token in team-a" in capsys.readouterr().err
