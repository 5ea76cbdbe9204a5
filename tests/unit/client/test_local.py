"""The Python interface with the backend `local`: an installed `lora-trainer`, played by a script."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.component.patience import eventually
from tests.unit.fit_models import llama

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
if sys.argv[1] == "ask":
    assert options["--input"] == "json"
    question = json.loads(sys.stdin.readline())["question"]
    if not question.strip():
        sys.exit("the question is empty")
    adapter = pathlib.Path(options["--adapter"]).relative_to(options["--claims"])
    answer = {{"question": question, "base": options["--max-new-tokens"], "adapter": str(adapter)}}
    print(json.dumps(answer))
    sys.exit(0)
manifest = json.loads(pathlib.Path(options["-f"]).read_text())
print("step 1/2  loss 2.0000 of", options["--uid"])
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
    run = client.run({**SPEC, "lora": {"rank": 8}}, name="tone").wait(600)
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
        run.wait(600)
    with pytest.raises(ClientError, match="has no adapter on a claim"):
        run.pull()


def test_a_local_run_is_asked_and_cloned(client: LoRAClient) -> None:
    """By the same verbs; what asks a cluster says so."""
    run = client.run({**SPEC, "lora": {"rank": 8}}, name="tone").wait(600)
    answer = run.ask("Who are\nyou?", most_tokens=7)
    assert (answer.question, answer.base, answer.adapter) == ("Who are\nyou?", "7", "adapters/tone")
    with pytest.raises(ClientError, match="lora-trainer ask ended with status 1: the question is empty"):
        run.ask(" ")
    other = run.clone({"lora.rank": 32})
    assert other.name == "tone-2"
    with pytest.raises(ClientError, match=r"tone-2 failed \(DatasetInvalid\)"):
        other.wait(600)
    with pytest.raises(ClientError, match="rank in it names no field"):
        run.clone({"rank in it": 1})
    for verb in (run.explain, run.serve, lambda: run.compare(other)):
        with pytest.raises(ClientError, match="asks a cluster, and tone is a run of this machine"):
            verb()


SLOW = TRAINER.replace(
    "manifest =", "import time; print('begun', options['--uid'], flush=True); time.sleep(600); manifest ="
)


def test_a_local_run_that_is_running_is_not_started_twice(client: LoRAClient, tmp_path: Path) -> None:
    """By a cell that is executed again, with a client of its own: as on a cluster it gets the run that there is."""
    (tmp_path / "bin" / "lora-trainer").write_text(SLOW)
    spec: Any = {**SPEC, "lora": {"rank": 8}}
    run = client.run(spec, name="tone")
    eventually(lambda: "begun" in run.logs(), "the process has begun")
    again = LoRAClient(backend="local", folder=tmp_path / "volumes")
    assert again.run(spec, name="tone") is run
    assert (client.get("tone"), again.get("tone")) == (run, run)
    assert repr(run) == f"<Run tone: Running, its log is {tmp_path / 'volumes' / 'tone.log'}>"
    spec["lora"]["rank"] = 4
    with pytest.raises(
        ClientError, match=r"tone is running with another manifest: wait\(\) for it, suspend\(\) it, or"
    ):
        client.run(spec, name="tone")
    assert run.suspend().logs().count("begun") == 1
    (tmp_path / "bin" / "lora-trainer").write_text(TRAINER)
    assert client.run(spec, name="tone").wait(600).state == "Succeeded"


def test_a_local_run_is_suspended_and_goes_on(client: LoRAClient, tmp_path: Path) -> None:
    """Its process ends as a pod's does, and the next one goes on in the same run and log; one that succeeded stays."""
    script = tmp_path / "bin" / "lora-trainer"
    script.write_text(SLOW)
    run = client.run({**SPEC, "lora": {"rank": 8}}, name="tone")
    eventually(lambda: "begun" in run.logs(), "the first process has begun")
    assert run.suspend().state == "ExitCode-15"
    script.write_text(TRAINER)
    assert run.resume().wait(600).state == "Succeeded"
    begun, step = run.logs().splitlines()
    assert begun == f"begun {step.rpartition(' of ')[2]}"
    assert run.resume().state == "Succeeded"


def test_plans_and_conversions_need_no_cluster(tmp_path: Path) -> None:
    """As the commands print them."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(llama()))
    plan = LoRAClient.plan(SPEC, config=config, gpus=["A10"])
    assert [gpu["name"] for gpu in plan["gpus"]] == ["A10"]
    assert LoRAClient.plan(SPEC, config=config, gpus="A10")["gpus"] == plan["gpus"]
    with pytest.raises(ClientError, match='--gpu is "B17"'):
        LoRAClient.plan(SPEC, config=config, gpus=["B17"])
    found = LoRAClient.convert("trl sft --model_name_or_path acme/model --lora_r 8 --use_peft", name="tone")
    assert found.manifest["spec"]["lora"]["rank"] == 8


@pytest.mark.parametrize("tokens", ["5000000", 0, -1, 5e6, True])
def test_tokens_that_are_no_number_of_them_are_refused(tokens: Any, tmp_path: Path) -> None:
    """By their name, as every failure is a sentence; the command line refuses them by itself."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(llama()))
    with pytest.raises(ClientError, match=rf"^tokens is {tokens!r}: must be a whole number from 1 on$"):
        LoRAClient.plan(SPEC, config=config, tokens=tokens)
    assert LoRAClient.plan(SPEC, config=config, tokens=5_000_000)


class OfNumPy:
    """A number as NumPy has it."""

    def tolist(self) -> int:
        """As Python has it."""
        return 8


def test_what_is_no_mapping_is_refused_and_what_json_lacks_is_turned_into_it(
    client: LoRAClient, tmp_path: Path
) -> None:
    """The name of a file, for example, and a number of NumPy."""
    file: Any = "run.yaml"
    given: Any = ["lora.rank=32"]
    for verb in (client.run, client.validate, LoRAClient.plan):
        with pytest.raises(ClientError, match=r"^spec is of the type str: must be a mapping, such as yaml\.safe_load"):
            verb(file)
    spec: Any = {**SPEC, "dataset": {"uri": Path("rows.jsonl")}, "lora": {"rank": OfNumPy()}}
    assert [problem.partition(",")[0] for problem in client.validate(spec)] == ['spec.dataset.uri is "rows.jsonl"']
    odd: Any = {"spec": SPEC, "metadata": "tone"}
    assert any(problem.startswith('metadata is "tone": must be') for problem in client.validate(odd))
    spec["dataset"] = SPEC["dataset"]
    run = client.run(spec, name="tone").wait(600)
    with pytest.raises(ClientError, match=r"^changes is of the type list: must be a mapping, as in \{\"lora\.rank"):
        run.clone(given)
    with pytest.raises(ClientError, match="rank is 0: must be"):
        run.clone({"lora.rank": 0})
    assert run.clone({"lora.alpha": OfNumPy()}, name="other").name == "other"


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
