"""Which run, namespace and context a command line means, and what to type instead of verbs that others have."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.unit.client.resources import finished, resource

from lora_client.__main__ import main
from lora_client.cluster.connection import Cluster
from lora_client.errors import ClientError
from lora_client.interface import LoRAClient

Object = dict[str, Any]


class Asked(Cluster):
    """Has every run, and remembers who was asked for."""

    def __init__(self) -> None:
        self.namespace = "team-a"
        self.names: list[str] = []
        self.runs = [resource("tone")]
        self.places: list[tuple[str | None, str | None]] = []

    def __call__(self, context: str | None = None, namespace: str | None = None) -> "Asked":
        self.places.append((context, namespace))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get(self, plural: str, name: str) -> Object:
        self.names.append(name)
        return resource(name, status=finished())

    def items(
        self, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False, version: str = ""
    ) -> list[Object]:
        return self.runs


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The one that every command asks."""
    asked = Asked()
    monkeypatch.setattr("lora_client.commands.connect", asked)
    monkeypatch.setattr("lora_client.runs.connect", asked)
    return asked


@pytest.mark.parametrize(
    "typed",
    [
        "tone",
        "lft/tone",
        "LoRAFineTune/tone",
        "lorafinetunes/tone",
        "lorafinetune.lora-operator.io/tone",
        "lorafinetunes.v1alpha1.lora-operator.io/tone",
    ],
)
def test_a_name_may_have_its_type(typed: str, cluster: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    """As kubectl takes what `-o name` prints."""
    assert main(["status", typed, "-o", "name"]) == 0
    assert capsys.readouterr().out == "lorafinetune.lora-operator.io/tone\n"
    assert LoRAClient().get(typed).name == "tone"
    assert cluster.names == ["tone", "tone"]


VERBS = ("status", "explain", "watch", "suspend", "resume", "logs", "clone", "compare", "pull", "ask", "serve")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("typed", ["", "A b", "pod/tone", "tone/", "LFT.x/tone", "a%2Fb", "../tone"])
def test_what_is_no_name_asks_no_cluster(
    verb: str, typed: str, cluster: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty one would be the list of all runs."""
    assert main([verb, typed, *(["tone"] if verb == "compare" else [])]) == 1
    out, err = capsys.readouterr()
    assert (out, cluster.places) == ("", [])
    assert err == (
        f"lora: NAME is \"{typed}\": must be the name of a run, of lower-case letters, digits and '-'; lora list lists "
        "them\n"
    )


def test_an_empty_name_is_none_in_python_either() -> None:
    """With the same sentence."""
    with pytest.raises(ClientError, match=r'^NAME is "": must be the name of a run'):
        LoRAClient().get("")


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["-n", "team-b", "list"], (None, "team-b")),
        (["--context", "there", "--namespace", "team-b", "list"], ("there", "team-b")),
        (["-n", "team-b", "list", "-n", "team-c"], (None, "team-c")),
        (["-n", "team-b", "status", "tone", "--context", "there"], ("there", "team-b")),
        (["list"], (None, None)),
    ],
)
def test_namespace_and_context_may_stand_before_the_verb(
    arguments: list[str], want: tuple[str | None, str | None], cluster: Asked
) -> None:
    """As with kubectl; behind it they count more."""
    assert main(arguments) == 0
    assert cluster.places == [want]


LINE = "lora -n team-b status t"
COMPLETED: dict[str, tuple[dict[str, str], str]] = {
    "bash": ({"COMP_WORDS": LINE, "COMP_CWORD": "4"}, "tone"),
    "zsh": ({"_TYPER_COMPLETE_ARGS": LINE}, "_arguments '*: :((\"tone\"))'"),
    "fish": ({"_TYPER_COMPLETE_ARGS": LINE, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "tone"),
}


@pytest.mark.parametrize("shell", [*COMPLETED])
def test_a_name_is_completed_in_the_namespace_before_the_verb(
    shell: str, cluster: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For each shell, by the variables that its script sets."""
    given, want = COMPLETED[shell]
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(variable in script for variable in given)
    monkeypatch.setenv("_LORA_COMPLETE", f"complete_{shell}")
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == want
    assert cluster.places == [(None, "team-b")]


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["wait", "tone"], "No such command 'wait': lora watch NAME does that"),
        (["top"], "No such command 'top': lora watch NAME does that"),
        (["metrics"], "No such command 'metrics': lora watch NAME does that"),
        (["events", "tone"], "No such command 'events': lora explain NAME does that"),
        (["label", "tone", "a=b"], "No such command 'label': kubectl label lft NAME KEY=VALUE does that"),
        (["-n", "team-b", "get", "lft"], "No such command 'get': lora list does that"),
    ],
)
def test_verbs_of_others_are_answered_with_ours(
    arguments: list[str], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever they stand."""
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"lora: {want}\n"


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ([], "in namespace team-a: lora init writes one, lora list -A shows those of all namespaces"),
        (["-A"], "in any namespace: lora init writes one"),
    ],
)
def test_where_there_are_no_runs_nobody_is_sent_in_a_circle(
    options: list[str], want: str, cluster: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    """To what was just typed."""
    cluster.runs = []
    assert main(["list", *options]) == 0
    assert capsys.readouterr() == ("", f"There are no runs {want}\n")
