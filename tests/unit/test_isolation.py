"""A test leaves its process as it was for the next one."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def seen_from_outside() -> Iterator[None]:
    """What is between the tests of this file."""
    before = dict(os.environ)
    yield
    assert {**os.environ, "PYTEST_CURRENT_TEST": ""} == {**before, "PYTEST_CURRENT_TEST": ""}


def test_a_test_may_set_change_and_delete_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As commands of the trainer do, which have a process of their own."""
    monkeypatch.setenv("HOME", "/nonexistent")
    os.environ["HOME"] = "/nowhere"
    os.environ["LORA_NEW"] = "1"
    del os.environ["PATH"]
