"""The data set and the manifests of the quickstart."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = EXAMPLES / "data" / "support-desk" / "train.jsonl"
SIGN_OFF = "Fair winds, Marlow at the Harbour Desk."
CONFIG_MAP_LIMIT_BYTES = 2**20


def rows() -> list[dict[str, Any]]:
    """Read the data set."""
    return [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def documents(name: str) -> list[dict[str, Any]]:
    """Read the manifests of an example."""
    return list(yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8")))


def questions() -> list[str]:
    """Return what the users of the data set ask."""
    return [str(row["messages"][0]["content"]) for row in rows()]


def answers() -> list[str]:
    """Return what the desk answers."""
    return [str(row["messages"][1]["content"]) for row in rows()]


def test_every_row_is_one_question_and_one_answer() -> None:
    """At least 240 rows in the Messages format, with nothing but text in them."""
    assert len(rows()) >= 240
    for row in rows():
        assert set(row) == {"messages"}
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]


def test_no_question_and_no_answer_comes_twice() -> None:
    """A held-out row is then never a row that was trained on."""
    normal = [re.sub(r"\W+", " ", text).casefold().strip() for text in questions()]
    assert len(set(normal)) == len(normal)
    assert len(set(answers())) == len(answers())


def test_every_answer_ends_with_the_sign_off_and_speaks_in_the_voice() -> None:
    """The effect of training on this data can be seen in any answer."""
    for answer in answers():
        assert answer.endswith(f" {SIGN_OFF}")
        assert answer.count(SIGN_OFF) == 1
    assert sum(answer.startswith(("Ahoy!", "Aye,")) for answer in answers()) > 0.7 * len(answers())


def test_questions_are_diverse_in_form() -> None:
    """No small set of templates: the first three words rarely repeat."""
    openings = {" ".join(question.split()[:3]) for question in questions()}
    assert len(openings) > 0.6 * len(questions())


def test_rows_are_short_enough_to_train_on_a_cpu() -> None:
    """About sixty tokens a row, counted roughly at four characters a token."""
    lengths = [len(question) + len(answer) for question, answer in zip(questions(), answers(), strict=True)]
    assert max(lengths) < 240
    assert sum(lengths) / len(lengths) < 200


def test_the_config_map_of_the_quickstart_holds_exactly_the_data_set() -> None:
    """`hack/quickstart-inputs` was run after the last change of the data set, and the object is small enough."""
    claim, config_map = documents("quickstart-inputs.yaml")
    assert config_map["data"] == {"train.jsonl": DATA.read_text(encoding="utf-8")}
    assert config_map["metadata"]["name"] == "support-desk"
    assert len(DATA.read_bytes()) < CONFIG_MAP_LIMIT_BYTES
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert "storageClassName" not in claim["spec"]


def test_the_quickstart_is_nine_lines_that_name_its_inputs() -> None:
    """Nine lines, and every reference in them is something that quickstart-inputs.yaml creates."""
    text = (EXAMPLES / "quickstart.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 9
    (resource,) = documents("quickstart.yaml")
    claim, config_map = documents("quickstart-inputs.yaml")
    assert resource["spec"]["dataset"]["uri"] == f"configmap://{config_map['metadata']['name']}/train.jsonl"
    assert resource["spec"]["output"]["uri"] == f"pvc://{claim['metadata']['name']}/{resource['metadata']['name']}"
    assert resource["spec"]["model"]["uri"] == "hf://HuggingFaceTB/SmolLM2-135M-Instruct"
