"""Commands in messages mean the run, the namespace and the cluster that the message is about."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.unit.client.resources import finished, resource
from tests.unit.client.test_forms import OneRun

from lora_client import typed
from lora_client.__main__ import main
from lora_client.output import note

COMMAND = re.compile(r"lora \w+ (?:-f )?[^\s,;:]+((?: -n \S+| --context \S+)*)")


@pytest.fixture(autouse=True)
def without_flags() -> Iterator[None]:
    """Afterwards, as before."""
    yield
    typed.forget()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("lora ask tone asks it, lora pull tone copies it", "lora ask tone{} asks it, lora pull tone{} copies it"),
        ("made from tone: lora watch tone-2", "made from tone: lora watch tone-2{}"),
        ("good: lora run -f ./a.yaml starts it", "good: lora run -f ./a.yaml{} starts it"),
        ("good: lora run -f 'a, b.yaml' starts it", "good: lora run -f 'a, b.yaml'{} starts it"),
        ("lora clone NAME --set lora.rank=VALUE", "lora clone NAME{} --set lora.rank=VALUE"),
        ("lora compare a b; lora status a, b", "lora compare a b{}; lora status a{}, b"),
        ("lora init writes one, lora list lists", "lora init writes one, lora list{} lists"),
        ("(lora explain tone)", "(lora explain tone{})"),
    ],
)
@pytest.mark.parametrize(
    ("namespace", "context", "flags"),
    [
        ("", "", ""),
        ("team-b", "", " -n team-b"),
        ("", "a b", " --context 'a b'"),
        ("b", "there", " -n b --context there"),
        ("b;id", "", " -n 'b;id'"),
    ],
)
def test_a_command_has_the_flags_of_the_one_that_printed_it(
    text: str, want: str, namespace: str, context: str, flags: str
) -> None:
    """Behind the name, and none where none was given."""
    typed.remember(lambda: (namespace, context))
    assert typed.completed(text) == want.format(*[flags] * want.count("{}"))


@pytest.mark.parametrize("flag", ["-A", "-n team-c"])
def test_a_command_with_a_namespace_keeps_it(flag: str) -> None:
    """Only the context is added."""
    typed.remember(lambda: ("team-b", "there"))
    assert typed.completed(f"lora list {flag} lists them") == f"lora list {flag} --context there lists them"


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["status", "tone"], ""),
        (["status", "tone", "-n", "team-b"], " -n team-b"),
        (["status", "tone", "--context", "there"], " --context there"),
        (["validate", "-f", "run.yaml"], ""),
        (["validate", "-f", "run.yaml", "-n", "team-b", "--context", "there"], " -n team-b --context there"),
        (["validate", "-f", "elsewhere.yaml"], " -n team-c"),
        (["suspend", "tone", "-n", "team-b"], " -n team-b"),
        (["clone", "tone", "-n", "team-b"], " -n team-b"),
    ],
)
def test_what_a_verb_says_to_type_means_the_same_place(
    arguments: list[str],
    flags: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its flags, or by the namespace of its file, where that is not the context's."""

    def connected(_context: str | None, namespace: str | None) -> OneRun:
        cluster = OneRun()
        cluster.namespace = namespace or "team-a"
        monkeypatch.setattr(cluster, "request", lambda *_, **__: resource(status=finished()))
        return cluster

    monkeypatch.setattr("lora_client.cluster.connection.connect", connected)
    monkeypatch.chdir(tmp_path)
    written = {"apiVersion": "lora-operator.io/v1alpha1", "kind": "LoRAFineTune", "spec": resource()["spec"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**written, "metadata": {"name": "tone"}}))
    (tmp_path / "elsewhere.yaml").write_text(
        yaml.safe_dump({**written, "metadata": {"name": "tone", "namespace": "team-c"}})
    )
    assert main(arguments) == 0
    found = COMMAND.findall("".join(capsys.readouterr()))
    assert found
    assert set(found) == {flags}


def test_the_command_of_a_failure_has_the_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that of a note."""
    cluster = OneRun()
    cluster.status = {}
    monkeypatch.setattr("lora_client.cluster.connection.connect", lambda *_: cluster)
    assert main(["pull", "tone", "--context", "there"]) == 1
    note("lora list")
    said = capsys.readouterr().err
    assert "lora status tone --context there shows" in said
    assert "lora list --context there\n" in said
    assert main(["pull", "tone"]) == 1
    assert "lora status tone shows" in capsys.readouterr().err
