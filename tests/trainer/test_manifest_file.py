"""Manifests as people mistype them: one sentence each, with the line, and nothing is passed over."""

import pytest
import yaml
from tests.unit.builders import make_manifest

from lora_trainer.errors import ConfigError
from lora_trainer.manifest_file import MOST_CHARACTERS, load_manifest

MUST_HOLD_ONE = "must hold one LoRAFineTune (lora-operator.io/v1alpha1); lora init writes one"
GOOD = """\
apiVersion: lora-operator.io/v1alpha1
kind: LoRAFineTune
metadata:
  name: tone
spec:
  model: {uri: hf://org/m}
  dataset: {uri: pvc://data/a.jsonl}
  training: {maxSteps: 20}
  output: {uri: pvc://out/tone}
"""
ALIASES = "the document has more than 3,145,728 characters with its aliases written out: use fewer"
BILLION_LAUGHS = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def refusal(text: str) -> str:
    """What is said of a file."""
    with pytest.raises(ConfigError) as error:
        load_manifest(text, "t.yaml", "uid")
    return str(error.value)


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        (
            "name: tone",
            "name: tone\n  name: other",
            "t.yaml, line 5, column 3: the field name is repeated, first in line 4: remove one",
        ),
        (
            "maxSteps: 20",
            "maxSteps: 20, maxSteps: 20",
            "t.yaml, line 8, column 28: the field maxSteps is repeated, first in line 8: remove one",
        ),
        ("spec:", "spec: {}\nspec:", "t.yaml, line 6, column 1: the field spec is repeated, first in line 5"),
        ("20", "1" * 6000, "t.yaml, line 8, column 24: the number has more digits than any field takes"),
        ("20", "0x" + "f" * 6000, "t.yaml, line 8, column 24: the number has more digits than any field takes"),
        ("20", "!!timestamp 2024-13-45", "t.yaml, line 8, column 24: month must be in 1..12"),
        ("tone", "2024-01-01", 't.yaml: metadata.name is "2024-01-01", which cannot name a run'),
        ("maxSteps: 20", "learningRate: 1e-4", "spec.training.learningRate is 0.0001: must be a quoted decimal number"),
        ("maxSteps: 20", "maxSteps: 2e1", "spec.training.maxSteps is 20.0: must be a whole number"),
        ("spec:", "sepc:", "there is no such field; did you mean spec?"),
        ("LoRAFineTune", "LoraFinetune", 't.yaml: kind is "LoraFinetune": must be LoRAFineTune'),
        ("v1alpha1", "v1", 't.yaml: apiVersion is "lora-operator.io/v1": must be lora-operator.io/v1alpha1'),
        ("tone\n", "tone\n\tx: 1\n", "t.yaml, line 5, column 1: found character '\\t' that cannot start any token"),
        ("tone", "\0", "t.yaml is not YAML: unacceptable character #x0000"),
        ("tone", "!!python/name:os.system x", "could not determine a constructor for the tag"),
        ("{maxSteps: 20}", "{[a]: 20}", "t.yaml, line 8, column 14: found unhashable key"),
    ],
)
def test_a_mistyped_manifest_gets_one_sentence(right: str, wrong: str, sentence: str) -> None:
    """With file and line, or with field, value and rule."""
    refused = refusal(GOOD.replace(right, wrong, 1))
    assert sentence in refused
    assert "; " not in refused.replace("field; did", "")
    assert len(refused) < 300


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "t.yaml holds nothing: must hold one LoRAFineTune (lora-operator.io/v1alpha1)"),
        ("a\n---\nb", "t.yaml holds no resource: must hold one"),
        (f"{GOOD}---\n{GOOD}", "holds 2 resources of kind LoRAFineTune: must hold one"),
        ("kind: ConfigMap\n---\nkind: Secret", "holds resources of kind ConfigMap, Secret: must hold one"),
        ("kind:\nspec: {}", "kind is missing"),
        ("kind: Secret\nstringData: {key: s3cr3t}", f"t.yaml holds a resource of kind Secret: {MUST_HOLD_ONE}"),
        ("kind: Deployment\nmetadata: {name: a}\nspec: {replicas: 2}", f"of kind Deployment: {MUST_HOLD_ONE}"),
        ("kind: Config\nusers: [{name: a, user: {token: s3cr3t}}]", f"of kind Config: {MUST_HOLD_ONE}"),
        ("auths: {registry: {auth: s3cr3t}}", f"t.yaml holds no resource: {MUST_HOLD_ONE}"),
        (
            f"kind: ConfigMap\n---\n{GOOD.replace('LoRAFineTune', 'LoRAFinetune')}",
            'its kind "LoRAFinetune" is written LoRAFineTune',
        ),
        ("a: " + "[" * 5000 + "]" * 5000, "t.yaml cannot be read: its lists and objects are nested too deeply"),
        ("{" * 5000, "t.yaml cannot be read: its lists and objects are nested too deeply"),
        (BILLION_LAUGHS, f"t.yaml, line 1, column 1: {ALIASES}"),
        (f"{GOOD}---\na: &a [*a]", f"t.yaml, line 11, column 1: {ALIASES}"),
        (f"a: &a {'x' * 2**20}\nb: [*a, *a, *a]", ALIASES),
        ("a0: &a0 {x: y}\n" + "".join(f"a{i}: &a{i} {{<<: [{f'*a{i - 1}, ' * 9}]}}\n" for i in range(1, 9)), ALIASES),
        ("#" * (MOST_CHARACTERS + 1), "has 3,145,729 characters: a manifest has at most 3,145,728"),
    ],
)
def test_a_file_that_is_no_manifest_gets_a_sentence(text: str, sentence: str) -> None:
    """However odd it is; what expands without end is not expanded, and nothing is quoted that may be secret."""
    refused = refusal(text)
    assert sentence in refused
    assert "s3cr3t" not in refused


def test_other_documents_merged_keys_and_what_kubectl_prints_are_taken() -> None:
    """A key beside a merged one is no second one."""
    plain = load_manifest(GOOD, "t.yaml", "uid")
    assert load_manifest(f"kind: ConfigMap\n---\n{GOOD}---\n", "t.yaml", "uid") == plain
    merged = "  training: {<<: &steps {maxSteps: 7}, maxSteps: 20}\n  checkpoint: {keep: 2}\n"
    assert load_manifest(GOOD.replace("  training: {maxSteps: 20}\n", merged), "t.yaml", "uid") == plain
    assert load_manifest(yaml.safe_dump(make_manifest()), "t.yaml", "uid").run.name == "support-tone"
