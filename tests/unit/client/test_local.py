"""The Python interface with the backend `local`: an installed `lora-trainer`, played by a script."""

import json
import os
import sys
from pathlib import Path

import pytest

from lora_client import LoRAClient
from lora_client.errors import ClientError
from lora_client.spec import Spec

SPEC: Spec = {
    "model": {"uri": "hf://acme/model"},
    "dataset": {"uri": "configmap://rows/train.jsonl"},
    "output": {"uri": "pvc://adapters/tone"},
}
TRAINER = f"""#!{sys.executable}
import json, pathlib, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
manifest = json.loads(pathlib.Path(options["-f"]).read_text())
print("step 1/2  loss 2.0000")
if manifest["spec"]["lora"]["rank"] > 16:
    summary = {{"reason": "DatasetInvalid", "message": "line 17 has no field 'output': add it"}}
    pathlib.Path(options["--termination-log"]).write_text(json.dumps(summary))
    sys.exit(65)
folder = pathlib.Path(options["--claims"]) / "adapters" / "tone"
folder.mkdir(parents=True)
(folder / "adapter_config.json").write_text("{{}}")
summary = {{"reason": "Succeeded", "artifact": {{"uri": "pvc://adapters/tone"}}}}
pathlib.Path(options["--termination-log"]).write_text(json.dumps(summary))
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoRAClient:
    """With a trainer on the PATH."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "lora-trainer"
    script.write_text(TRAINER)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return LoRAClient(backend="local", folder=tmp_path / "volumes", config_maps=tmp_path / "configmaps")


def test_a_local_run_is_waited_for_and_pulled(client: LoRAClient, tmp_path: Path) -> None:
    """As one of a cluster."""
    run = client.run({**SPEC, "lora": {"rank": 8}}, name="tone").wait(60)
    assert (run.name, run.state) == ("tone", "Succeeded")
    assert "loss 2.0000" in run.logs()
    folder = run.pull(tmp_path / "here")
    assert json.loads((folder / "adapter_config.json").read_text()) == {}
    with pytest.raises(ClientError, match="exists already"):
        run.pull(folder)
    assert [other.name for other in client.list()] == ["tone"]


def test_a_local_run_that_fails_says_why(client: LoRAClient) -> None:
    """By its own summary."""
    run = client.run({**SPEC, "lora": {"rank": 32}}, name="tone")
    with pytest.raises(ClientError, match=r"tone failed \(DatasetInvalid\): line 17 has no field 'output'"):
        run.wait(60)
    with pytest.raises(ClientError, match="has no adapter on a claim"):
        run.pull()


def test_what_a_local_run_cannot_be_is_said_before_it_starts(
    client: LoRAClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every problem, a name that nobody started, and a trainer that is not installed."""
    with pytest.raises(ClientError, match="did you mean NF4"):
        client.run({**SPEC, "quantization": "nf4"})  # type: ignore[typeddict-item]
    with pytest.raises(ClientError, match="No run other was started"):
        client.get("other")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClientError, match="There is no lora-trainer on the PATH"):
        client.run(SPEC)
