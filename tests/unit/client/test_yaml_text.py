"""YAML is read by kubectl as it was meant, whose YAML knows more numbers than PyYAML's."""

import re

import pytest
import yaml

from lora_client.output import Form, data
from lora_client.yaml_text import yaml_text


@pytest.mark.parametrize(
    "text", ["1e-4", "1E5", "-2e+3", "+1", ".5", "1.", "0.0002", "7e10", "007", "0o7", "y", "1e5e"]
)
def test_text_that_reads_as_a_number_is_quoted(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate of 1e-4 stays text."""
    written = yaml_text({"learningRate": text, text: [text]})
    quoted = [f'"{text}"', f"'{text}'"]
    plain = text == "1e5e"
    assert all(any(q in line for q in quoted) != plain for line in written.splitlines()), written
    assert yaml.safe_load(written) == {"learningRate": text, text: [text]}
    data(Form.YAML, {"learningRate": text})
    assert capsys.readouterr().out == re.split(r"(?<=\n)", written)[0]


def test_numbers_stay_numbers() -> None:
    """In their order, and nothing refers to anything."""
    labels = {"app": "vllm"}
    assert yaml_text([labels, labels]) == "- app: vllm\n- app: vllm\n"
    assert yaml_text({"b": 3, "a": 0.5, "c": True, "d": "ä"}) == "b: 3\na: 0.5\nc: true\nd: ä\n"
