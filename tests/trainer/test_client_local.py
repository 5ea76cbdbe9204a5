"""The Python interface with the backend `local`, over a real training; what it does with every end, a script plays."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.trainer import tiny
from tests.trainer.runs import PATIENCE_S, TRAINER, Workplace

from lora_client import LoRAClient

INSTALLED = f"#!{sys.executable}\nimport sys\nfrom lora_trainer.cli import main\nsys.exit(main())\n"
"""As pip writes it, with the sources on the path."""


@pytest.fixture
def client(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> LoRAClient:
    """On a machine with a trainer, and claims with the tiny model."""
    program = workplace.root / "bin" / "lora-trainer"
    program.parent.mkdir()
    program.write_text(INSTALLED, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(TRAINER))
    return LoRAClient(backend="local", folder=workplace.claims, config_maps=workplace.root / "configmaps")


def test_a_run_on_this_machine_trains_an_adapter_that_is_pulled_and_asked(client: LoRAClient, tmp_path: Path) -> None:
    """What the client gives the trainer and takes from it is what that takes and gives."""
    spec: Any = tiny.manifest(training={"maxSteps": 2})["spec"]
    assert client.validate(spec, name="tone") == ()
    run = client.run(spec, name="tone").wait(PATIENCE_S)
    assert run.state == "Succeeded"
    assert "step 2/2" in run.logs()
    folder = run.pull(tmp_path / "here")
    matrices = load_file(folder / "adapter_model.safetensors")
    assert {len(matrix) for name, matrix in matrices.items() if "lora_A" in name} == {spec["lora"]["rank"]}
    answer = run.ask("Where is my parcel?", most_tokens=2)
    assert answer.question == "Where is my parcel?"
    assert answer.adapter
