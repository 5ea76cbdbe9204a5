"""The API server's answers as sentences, and words of other tools."""

from typing import Any

import pytest
from tests.component.generated import fields, present, schema_of
from tests.unit.client.resources import resource

from lora_client.views.checked import checked, own_problems, shown
from lora_client.views.refusals import Refusal, problems, sentence_of
from lora_client.views.words import FIELDS, VALUES, address_hint, meant

RIGHT = 'pods is forbidden: User "eve" cannot list resource "pods" in API group "" in the namespace "team-a"'
HERE, EVERYWHERE = 'in the namespace "team-a"', "at the cluster scope"
ASK = "ask the namespace's administrator for the role"


def denied(verb: str, resource: str, scope: str) -> str:
    """The API server's words for a right on runs that is lacking."""
    what = f'cannot {verb} resource "{resource}" in API group "lora-operator.io" {scope}'
    return f'{resource}.lora-operator.io is forbidden: User "ann" {what}'


POLICY = (
    "lorafinetunes.lora-operator.io \"tone\" is forbidden: ValidatingAdmissionPolicy 'lora-runs' with binding "
    "'lora-runs' denied request: spec.model.uri is \"hf://b/c\": it must begin with hf://acme/; choose one that does"
)


def invalid(field: str, message: str) -> Refusal:
    """A resource that was found invalid for one cause."""
    return Refusal(code=422, reason="Invalid", message="is invalid", causes=((field, message),), kind="lorafinetunes")


@pytest.mark.parametrize(
    ("field", "message", "want"),
    [
        (
            "spec.training.learningRate",
            'Invalid value: "number": spec.training.learningRate in body must be of type string: "number"',
            'spec.training.learningRate is a number: must be text, as in learningRate: "0.0002" with the quotes',
        ),
        (
            "spec.lora.rank",
            'Invalid value: "string": spec.lora.rank in body must be of type integer: "string"',
            "spec.lora.rank is a string: must be a whole number",
        ),
        (
            "spec.lora.rank",
            "Invalid value: 2000: spec.lora.rank in body should be less than or equal to 1024",
            'spec.lora.rank is "2000": must be at most 1024',
        ),
        (
            "spec.lora.rank",
            "Invalid value: 0: spec.lora.rank in body should be greater than or equal to 1",
            'spec.lora.rank is "0": must be at least 1',
        ),
        (
            "spec.lora.layers",
            'Unsupported value: "all-linear": supported values: "AllLinear", "Attention", "MLP", "QueryValue"',
            (
                'spec.lora.layers is "all-linear": must be one of AllLinear, Attention, MLP, QueryValue; '
                "did you mean AllLinear?"
            ),
        ),
        (
            "spec.training.optimizer",
            'Unsupported value: "adamw_8bit": supported values: "AdamW", "AdamW8bit", "PagedAdamW8bit"',
            (
                'spec.training.optimizer is "adamw_8bit": must be one of AdamW, AdamW8bit, PagedAdamW8bit; '
                "did you mean AdamW8bit?"
            ),
        ),
        ("spec.output", "Required value", "spec.output is missing: must be set"),
        (
            "spec.training",
            'Invalid value: {"epochs":"1","maxSteps":3}: maxSteps must not be set together with epochs',
            'spec.training is "{"epochs":"1","maxSteps":3}": maxSteps must not be set together with epochs',
        ),
        (
            "spec.lora.rank",
            "Forbidden: immutable: it defines the run; create a new LoRAFineTune instead",
            (
                "spec.lora.rank: immutable: it defines the run; create a new LoRAFineTune instead; "
                "lora clone NAME --set lora.rank=VALUE makes one"
            ),
        ),
        (
            "spec.training",
            'Invalid value: "object": maxSteps must not be set together with epochs',
            "spec.training: maxSteps must not be set together with epochs",
        ),
    ],
)
def test_a_cause_is_a_sentence(field: str, message: str, want: str) -> None:
    """Field, value, rule, and what to write instead."""
    assert list(problems(invalid(field, message))) == [want]


@pytest.mark.parametrize(
    ("refusal", "begin"),
    [
        *(
            (
                Refusal(code=403, reason="Forbidden", message=denied(verb, "lorafinetunes", scope)),
                f"You lack a right ({denied(verb, 'lorafinetunes', scope)}): {remedy}",
            )
            for verb, scope, remedy in (
                ("list", EVERYWHERE, "leave -A out, or ask the cluster's administrator for a ClusterRoleBinding of v"),
                ("get", HERE, f"{ASK} view or, where the chart lists namespaces, for lora-finetune-operator-view"),
                ("list", HERE, f"{ASK} view or, where"),
                ("watch", HERE, f"{ASK} view or, where"),
                ("create", HERE, f"{ASK} edit or, where the chart lists namespaces, for lora-finetune-operator-edit"),
                ("patch", HERE, f"{ASK} edit or, where"),
            )
        ),
        (Refusal(code=401, reason="Unauthorized", message="Unauthorized"), "The API server does not accept these"),
        (
            Refusal(code=403, reason="Forbidden", message=RIGHT),
            f"You lack a right ({RIGHT}): ask the namespace's administrator for the role edit",
        ),
        (
            Refusal(code=404, reason="NotFound", message="x", name="tone", kind="lorafinetunes", namespace="a"),
            "There is no LoRAFineTune a/tone: lora list -n a",
        ),
        (Refusal(code=404, reason="NotFound", message="page"), "The cluster does not know LoRAFineTunes: check"),
        (
            Refusal(code=404, reason="NotFound", message="x", name="c", kind="persistentvolumeclaims", namespace="a"),
            "There is no persistentvolumeclaim a/c",
        ),
        (
            Refusal(code=404, reason="NotFound", message="x", name="a", kind="namespaces", namespace="a"),
            "There is no namespace a: check its spelling, or create it with kubectl create namespace a",
        ),
        (
            Refusal(code=404, reason="NotFound", message="x", name="a;id", kind="namespaces", namespace="a"),
            "There is no namespace a;id: check its spelling, or create it with kubectl create namespace 'a;id'",
        ),
        (
            Refusal(code=500, reason="InternalError", message="boom"),
            "The API server refused this (500 InternalError): boom",
        ),
    ],
)
def test_a_refusal_is_one_sentence_with_what_to_do(refusal: Refusal, begin: str) -> None:
    """Whatever the server answers."""
    assert sentence_of(refusal).startswith(begin)
    assert "\n" not in sentence_of(refusal)


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (POLICY, ""),
        ('admission webhook "x" denied the request: User "eve" cannot create resource "x": no', ""),
        (
            'pods "tone-pull-1" is forbidden: exceeded quota: team, requested: requests.memory=128Mi',
            ": free some of the namespace's ResourceQuota or have it raised",
        ),
        (
            'pods "tone-pull-1" is forbidden: failed quota: team: must specify limits.cpu for: lora',
            (
                ": have the ResourceQuota limit requests instead, or a LimitRange set a default not below what the pod "
                "requests"
            ),
        ),
        (
            'pods "tone-pull-1" is forbidden: violates PodSecurity "restricted:latest": seccompProfile',
            ": the namespace must allow what the message names, or the operator's configuration must do without it",
        ),
        (
            'pods "tone-pull-1" is forbidden: minimum memory usage per Container is 1Gi, but request is 128Mi',
            ": have the namespace's LimitRange changed",
        ),
    ],
)
def test_whoever_lacks_no_right_is_sent_for_none(message: str, remedy: str) -> None:
    """Policies, quotas and webhooks answer 403, too; a policy's own sentence has its remedy."""
    refusal = Refusal(code=403, reason="Forbidden", message=message, kind="pods")
    assert sentence_of(refusal) == f"The API server refused this: {message}{remedy}"


def test_an_odd_answer_is_read_as_far_as_it_goes() -> None:
    """A proxy may answer with anything."""
    status = {"details": {"causes": ["x", {"field": 3}]}, "message": None}
    refusal = Refusal.of(502, status, b"<html>\nbad   gateway</html>", "team-a")
    assert refusal.message == "<html> bad gateway</html>"
    assert refusal.causes == (("3", ""),)
    assert Refusal.of(500, {"details": 1}, b"", "").reason == "Unknown"


def test_the_contracts_sentence_wins_over_the_servers_for_the_same_field() -> None:
    """It names the remedy; what only the server knows is kept."""
    manifest = resource(lora={"rank": 2000})
    refusal = Refusal(
        code=422,
        reason="Invalid",
        message="",
        causes=(
            ("spec.lora.rank", "Invalid value: 2000: spec.lora.rank in body should be less than or equal to 1024"),
            ("spec.new", "Invalid value: 1: must be 2"),
        ),
    )
    found = checked(own_problems(manifest), [refusal]).problems
    assert found == ("spec.lora.rank is 2000: must be a whole number from 1 to 1024", 'spec.new is "1": must be 2')


def test_what_the_server_takes_is_good_whatever_an_older_client_thinks() -> None:
    """A newer operator may know more."""
    found = checked(own_problems(resource(lora={"rang": 2})), [])
    assert found.problems == ()
    assert "did you mean rank?" in found.notes[0]


def test_a_field_that_the_cluster_does_not_know_names_an_older_operator() -> None:
    """Where this client does know it."""
    message = (
        'LoRAFineTune in version "v1alpha1" cannot be handled: strict decoding error: unknown field "spec.preflight"'
    )
    refusal = Refusal(code=400, reason="BadRequest", message=message)
    (found,) = checked(own_problems(resource(preflight="Skip")), [refusal]).problems
    assert found.startswith("spec.preflight: the operator in the cluster does not know this field, which this client")


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"lora": {"layers": "all-linear"}}, "did you mean AllLinear?"),
        ({"training": {"schedule": "cosine"}}, "did you mean Cosine?"),
        ({"quantization": "nf4"}, "did you mean NF4?"),
        ({"training": {"optimizer": "adamw_8bit"}}, "did you mean AdamW8bit?"),
        ({"lora": {"lora_alpha": 32}}, "spec.lora.lora_alpha: there is no such field; spec.lora.alpha does this here"),
        ({"training": {"num_train_epochs": 3}}, "spec.training.epochs does this here"),
        ({"training": {"learningRate": 0.0001}}, 'learningRate: "0.0001"'),
        ({"checkpoint": {"interval": 600}}, "no such field; did you mean intervalSeconds or intervalSteps?"),
        ({"nodeSelector": {"a": "b"}}, "spec.nodeSelector: there is no such field; did you mean spec.scheduling.nodeS"),
        ({"tolerations": []}, "did you mean spec.scheduling.tolerations?"),
        ({"learningRate": "1e-4"}, "did you mean spec.training.learningRate?"),
        ({"training": {"quantization": "NF4"}}, "did you mean spec.quantization?"),
        ({"resources": {"limits": {"cpu": 1}}}, "spec.resources.gpus or spec.resources.cpu or spec.resources.memory"),
        ({"model": {"name": "a/b"}}, "spec.model.name: there is no such field; spec.model.uri does this here"),
        (
            {"dataset": {"uri": "hf://a/b", "name": "en"}},
            'spec.dataset.name is "en": there is no such field; known are',
        ),
        ({"training": {"wandb": None}}, 'spec.training.wandb is "null": there is no such field; known are'),
        ({"model": {"uri": "hf://a/b", "secretRef": "t"}}, 'must be an object, as in secretRef: {name: "t"}'),
        ({"dataset": "hf://a/b"}, 'must be an object, as in dataset: {uri: "hf://a/b"}'),
        ({"dataset": {"uri": "https://huggingface.co/datasets/a/b"}}, "did you mean hf://a/b?"),
        ({"dataset": {"uri": "hf://datasets/a/b"}}, "did you mean hf://a/b?"),
        ({"model": {"uri": "https://hf.co/a/b/tree/main"}}, "did you mean hf://a/b?"),
        ({"dataset": {"uri": "hf://a/b", "validationUri": "c/d"}}, "did you mean hf://c/d?"),
        ({"dataset": {"uri": "gs://bucket/a.jsonl"}}, "has no supported scheme: write pvc://claim/path"),
        ({"tracking": {"kind": "wandb", "project": "x"}}, "did you mean WandB?"),
    ],
)
def test_words_of_other_tools_get_ours(spec: dict[str, Any], want: str) -> None:
    """Of PEFT, TRL and Axolotl."""
    assert any(want in shown(problem) for problem in own_problems(resource(**spec)))


@pytest.mark.parametrize("section", ["spec", "spec.training", "spec.lora"])
def test_a_field_of_another_tool_is_named_by_ours_wherever_it_was_written(section: str) -> None:
    """Not by one of ours that is only spelt like it."""
    for name, ours in FIELDS.items():
        spec: dict[str, Any] = {name: 1} if section == "spec" else {section.partition(".")[2]: {name: 1}}
        said = [shown(problem) for problem in own_problems(resource(**spec)) if problem.path == f"{section}.{name}"]
        assert said == [f"{section}.{name}: there is no such field; {ours} does this here"], name


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"tracking": {"kind": "wandb", "project": "x"}}, "spec.tracking.kind"),
        ({"dataset": {"uri": "gs://bucket/a.jsonl"}}, "spec.dataset.uri"),
    ],
)
def test_nothing_that_does_not_follow_is_said_beside_it(spec: dict[str, Any], path: str) -> None:
    """Of a field that was refused, and of a file that is not one of this machine."""
    (said,) = map(shown, own_problems(resource(**spec)))
    assert said.startswith(path)
    assert "configmap NAME" not in said


def test_every_word_of_the_tables_is_one_that_the_definition_takes() -> None:
    """A renamed field or value shows here."""
    known = {
        ".".join(("spec", *field.path)): field.schema for field in fields(schema_of(present())["properties"]["spec"])
    }
    for path, words in VALUES.items():
        assert set(words.values()) <= set(known[path]["enum"]), path
    for target in FIELDS.values():
        assert set(target.split(" or ")) <= known.keys(), target


def test_a_word_that_is_near_none_gets_no_hint() -> None:
    """Guessing would mislead."""
    assert address_hint("spec.model.uri", "hf://a/b\u00e4") == ""
    assert meant("spec.training.schedule", "polynomial") is None
    assert meant("spec.lora.rank", "all-linear") is None
