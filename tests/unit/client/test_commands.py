"""The command line without a cluster: help, wrong words, files that are none, clusters that do not answer."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.ports import free_port
from typer.main import get_command

from lora_client.__main__ import main
from lora_client.commands import app
from lora_trainer.errors import TransientError
from lora_trainer.spec.manifest import RunOptions, train_config

ROOT = Path(__file__).parents[3]
MANIFEST = """\
apiVersion: lora-operator.io/v1alpha1
kind: LoRAFineTune
metadata: {name: tone}
spec:
  model: {uri: "hf://acme/model"}
  dataset: {uri: "hf://acme/chats"}
  output: {uri: "pvc://adapters/tone"}
"""
CONFIG = """\
{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
 "num_key_value_heads": 2, "vocab_size": 1000, "tie_word_embeddings": true, "max_position_embeddings": 512,
 "architectures": ["LlamaForCausalLM"]}
"""


def kubeconfig(path: Path, server: str) -> Path:
    """One context, named here."""
    cluster = {"name": "c", "cluster": {"server": server}}
    context = {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}}
    user = {"name": "u", "user": {"token": "t"}}
    document = {"current-context": "here", "clusters": [cluster], "contexts": [context], "users": [user]}
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that nobody is at, and a folder of the test's own."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{free_port()}")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(MANIFEST)
    (tmp_path / "config.json").write_text(CONFIG)
    (tmp_path / "secret.yaml").write_text("apiVersion: v1\nkind: Secret\nstringData: {token: s3cr3t}\n")
    (tmp_path / "claim.yaml").write_text(MANIFEST.replace("hf://acme/model", "pvc://models/base"))
    (tmp_path / "axolotl.yaml").write_text("base_model: a/b\nlora_r: 8\nwandb_project:\n")
    (tmp_path / "twice.yaml").write_text(f"{MANIFEST}---\n{MANIFEST}")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["list"], "does not answer (Connection refused"),
        (["list", "--context", "there"], "There is no context there: kubectl config get-contexts"),
        (["lsit"], "No such command 'lsit'"),
        (["get", "lft"], "No such command 'get': lora list does that"),
        (["delete", "tone"], "kubectl delete lft NAME does that"),
        (["run", "run.yaml"], "Missing option '--file' / '-f': type lora run -f run.yaml"),
        (["validate"], "type lora validate -f FILE"),
        (["list", "--nonsense"], "No such option"),
        (["status"], "Missing argument 'NAME'"),
        (["list", "-o", "xml"], "Invalid value for '--output' / '-o': 'xml' is not one of 'text'"),
        (["validate", "-f", "none.yaml"], "none.yaml cannot be read (No such file or directory)"),
        (["validate", "-f", "bytes"], "bytes is not text in UTF-8"),
        (["validate", "-f", "twice.yaml"], "holds 2 resources of kind LoRAFineTune"),
        (["validate", "-f", "run.yaml"], "does not answer"),
        (["validate", "-f", "config.json"], "config.json holds no resource: must hold one LoRAFineTune"),
        (["run", "-f", "secret.yaml"], "secret.yaml holds a resource of kind Secret: must hold one LoRAFineTune"),
        (["plan", "-f", "secret.yaml", "--config", "config.json"], "of kind Secret: must hold one LoRAFineTune"),
        (["clone", "tone", "--set", "rank"], "--set rank names no field and value"),
        (
            ["clone", "tone", "--set", "scheduling.nodeSelector.nvidia.com/gpu.product=L4"],
            "and a map with dots or slashes in its keys as in --set 'scheduling.nodeSelector={nvidia.com/gpu.product:",
        ),
        (["ask", "tone", " "], "QUESTION is empty"),
        (["serve", "tone", "--with", "tgi"], "--with is tgi: must be vllm or kserve"),
        (["completion", "csh"], "SHELL is csh: must be bash, zsh or fish"),
        (["convert", "none.yaml"], "none.yaml cannot be read (No such file or directory): name a YAML file of Axolotl"),
        (["convert", "run.yaml"], "The file is a LoRAFineTune already: lora validate -f"),
        (["convert", "kubeconfig"], "The file has no option of PEFT and TRL that this release knows: name a YAML"),
        (
            ["init", "-f", "run.yaml", "--model", "hf://a/b", "--dataset", "hf://a/c", "--to", "pvc://x/y"],
            "exists already",
        ),
        (["init", "--model", "a/b", "--dataset", "hf://a/c", "--to", "pvc://x/y"], "did you mean hf://a/b?"),
        (
            ["init", "--model", "hf://a/b", "--dataset", "my/data.jsonl", "--to", "pvc://x/y"],
            "kubectl create configmap NAME --from-file=FILE",
        ),
        (
            [
                "init",
                "--model",
                "hf://a/b",
                "--dataset",
                "s3://bucket/c",
                "--to",
                "s3://bucket/d",
                "--secret",
                "s3-keys",
            ],
            "--secret is s3-keys, but the addresses are hf:// and s3://, of which each needs other keys: leave it out",
        ),
        (["init"], "--model is missing"),
        (["init", "-f", ""], "--file is empty: name a new file, or - for standard output"),
        (
            ["plan", "-f", "axolotl.yaml"],
            "and no LoRAFineTune: lora convert axolotl.yaml -f NEW.yaml makes one from it",
        ),
        (["run", "-f", "axolotl.yaml"], "lora convert axolotl.yaml -f NEW.yaml"),
        (
            ["plan", "-f", "claim.yaml"],
            "which a pod alone can read: name a copy of the model's config.json by --config",
        ),
        (["init", "--model", "hf://a/b"], "--dataset is missing"),
        (["init", "--model", "hf://a/b", "--dataset", "hf://c/d"], "--to is missing: name it, or run this in a"),
        (
            ["plan", "-f", "run.yaml", "--config", "none.json"],
            "none.json cannot be read (No such file or directory): name",
        ),
        (["plan", "-f", "run.yaml", "--config", "config.json", "--gpu", "Z99"], "Z99"),
        (
            ["plan", "-f", "run.yaml", "--config", "config.json", "--gpu", "a100"],
            "did you mean A100 40 or A100 80?",
        ),
        (["plan", "-f", "run.yaml", "--config", "config.json", "--gpu", "24"], "did you mean 24GiB?"),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(
    arguments: list[str], want: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1, as kubectl's, nothing on standard output, no traceback."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert want in err
    assert "s3cr3t" not in err
    assert out == ""
    assert err.startswith("lora: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_question_without_an_answer_names_the_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is not always called as the field."""

    typed = io.StringIO("\n")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", typed)
    assert main(["init", "--model", "hf://a/b", "--dataset", "hf://c/d"]) == 1
    assert capsys.readouterr().err.endswith("lora: --to is missing: name it, or answer the question\n")


@pytest.mark.parametrize("content", ["", "[]", "hello", "x: [", "contexts: 3\n", "current-context: a\n"])
def test_a_kubeconfig_that_is_none_is_one_sentence(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the library makes of it."""
    (tmp_path / "kubeconfig").write_text(content)
    assert main(["list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"lora: The kubeconfig {tmp_path / 'kubeconfig'} cannot be used (")
    assert err.count("\n") == 1
    assert "'str' object" not in err


def test_a_kubeconfig_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on the first day, when nobody has copied one."""
    monkeypatch.setenv("KUBECONFIG", "/nonexistent/config")
    assert main(["list"]) == 1
    assert capsys.readouterr().err.startswith("lora: There is no kubeconfig /nonexistent/config: set KUBECONFIG")


def test_an_empty_kubeconfig_variable_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As to kubectl."""
    (tmp_path / ".kube").mkdir()
    (tmp_path / "kubeconfig").rename(tmp_path / ".kube" / "config")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", "")
    assert main(["list"]) == 1
    assert "does not answer (Connection refused" in capsys.readouterr().err


def test_a_bare_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """As --help does."""
    assert main(["--help"]) == 0
    asked = capsys.readouterr()
    assert main([]) == 0
    assert capsys.readouterr() == asked
    assert asked.err == ""
    assert "..." not in asked.out.partition("Commands:")[2], "a verb's first sentence is longer than its line"
    assert main(["-n", "team-b"]) == 0
    assert capsys.readouterr() == asked


def test_a_mistake_of_our_own_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, ever."""
    monkeypatch.setattr("lora_client.commands.run_command", lambda _: dict[str, int]()["x"])
    assert main(["list"]) == 1
    assert capsys.readouterr().err.startswith("lora: This is a bug in lora (KeyError")


def test_an_installation_without_the_client_s_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command comes with every extra of the distribution, what it needs with one."""
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "lora_client.commands", raising=False)
    assert main(["list"]) == 1
    assert capsys.readouterr().err.startswith("lora: The Python package typer is missing: pip install '.[client]'")


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">/dev/full", 1, "lora: Standard output cannot be written (No space left on device): name another place\n"),
        (">&-", 0, ""),
        ("2>&- | head -c 1 >/dev/null", 0, ""),
    ],
)
def test_what_cannot_be_written_is_no_bug(redirection: str, status: int, said: str) -> None:
    """A full disk is named; what the shell closed is not written to."""
    command = f"{sys.executable} -m lora_client completion bash {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(said.removesuffix("\n"))
    assert done.stderr.count("\n") == said.count("\n")


def test_completion_is_offered_once(capsys: pytest.CaptureFixture[str]) -> None:
    """By `lora completion`; Typer's own options would write into the shell's files."""
    assert main(["--help"]) == 0
    assert "--install-completion" not in capsys.readouterr().out


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the status that shells expect."""

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_client.commands.run_command", interrupted)
    assert main(["list"]) == 130


def test_init_writes_a_run_that_the_contract_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By flags; the name is the end of the output."""
    flags = ["--model", "hf://a/b", "--dataset", "hf://a/c", "--to", "pvc://adapters/Support_Tone", "--rank", "8"]
    assert main(["init", "-f", "new.yaml", *flags, "--secret", "hf-token"]) == 0
    assert "lora validate -f new.yaml" in capsys.readouterr().out
    manifest = yaml.safe_load((tmp_path / "new.yaml").read_text())
    config = train_config(manifest, RunOptions(uid="u", strict=True))
    assert (config.run.name, config.lora.rank) == ("support-tone", 8)
    assert manifest["spec"]["dataset"]["secretRef"] == {"name": "hf-token"}


def test_init_quotes_its_file_and_cuts_a_long_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To what can be typed, and to what a run can be called."""
    flags = ["--model", "hf://a/b", "--dataset", "hf://a/c", "--to", f"pvc://adapters/{'a' * 51}-bb"]
    assert main(["init", "-f", "my run.yaml", *flags]) == 0
    assert "lora validate -f 'my run.yaml' asks" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "my run.yaml").read_text())["metadata"]["name"] == "a" * 51


def test_init_asks_nothing_where_its_file_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers would be lost."""
    (tmp_path / "finetune.yaml").symlink_to("nowhere")
    typed = io.StringIO("hf://a/b\nhf://a/c\npvc://adapters/tone\n")
    typed.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", typed)
    assert main(["init"]) == 1
    want = "lora: finetune.yaml exists already: name another file with -f, or remove it\n"
    assert capsys.readouterr() == ("", want)


def test_init_asks_again_for_an_answer_that_cannot_be_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, with what was meant; the answers before it are kept."""
    typed = io.StringIO("hf://a/b\na/c\nhf://a/c\npvc://adapters/tone\n")
    typed.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", typed)
    assert main(["init", "-f", "new.yaml"]) == 0
    said = capsys.readouterr().err
    assert said.count("Base model") == 1
    assert said.count("Training data") == 2
    assert "did you mean hf://a/c?" in said
    assert said.endswith("{name: SECRET} beside its uri\n")
    assert yaml.safe_load((tmp_path / "new.yaml").read_text())["spec"]["dataset"] == {"uri": "hf://a/c"}


@pytest.mark.parametrize(
    ("model", "dataset", "output", "want"),
    [
        ("hf://a/b", "hf://a/c", "pvc://x/tone", ["model", "dataset"]),
        ("hf://a/b", "configmap://a/c", "hf://a/tone", ["model", "output"]),
        ("s3://bucket/b", "s3://bucket/c.jsonl", "s3://bucket/tone", ["model", "dataset", "output"]),
        ("pvc://a/b", "pvc://a/c.jsonl", "oci://r.example/tone", ["output"]),
        ("pvc://a/b", "pvc://a/c.jsonl", "pvc://a/tone", []),
    ],
)
def test_a_secret_is_of_every_address_that_takes_one(
    model: str, dataset: str, output: str, want: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The output's too."""
    flags = ["--model", model, "--dataset", dataset, "--to", output, "--secret", "keys"]
    assert main(["init", "-f", "-", *flags]) == 0
    spec = yaml.safe_load(capsys.readouterr().out)["spec"]
    assert [field for field in ("model", "dataset", "output") if "secretRef" in spec[field]] == want


def test_plan_needs_neither_gpu_nor_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    """As a table, or as data."""
    assert main(["plan", "-f", "run.yaml", "--config", "config.json", "--gpu", "T4"]) == 0
    assert "Adapter: rank 16" in capsys.readouterr().out
    assert main(["plan", "-f", "run.yaml", "--config", "config.json", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["rank"] == 16


def test_a_plan_that_does_not_reach_the_model_names_the_way_without(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of its configuration."""

    def unreached(*_: object) -> None:
        raise TransientError("the Hub cannot be reached")

    monkeypatch.setattr("lora_trainer.plan_run.plan_run", unreached)
    assert main(["plan", "-f", "run.yaml"]) == 1
    want = "lora: the Hub cannot be reached; or name a copy of the model's config.json by --config\n"
    assert capsys.readouterr() == ("", want)


def test_convert_prints_a_manifest_and_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest on standard output, the rest beside it."""
    (tmp_path / "a.yaml").write_text("base_model: a/b\nadapter: lora\ndatasets: [{path: c/d}]\nflash_attention: true\n")
    assert main(["convert", "a.yaml", "--name", "mine"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["metadata"] == {"name": "mine"}
    assert "flash_attention (true) is not taken over: fast paths" in err
    assert main(["convert", "a.yaml", "--name", "My_Run"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.startswith('lora: --name: metadata.name is "My_Run", which cannot name a run')) == ("", True)
    assert main(["convert", "a.yaml", "-o", "json"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["tool"] == "Axolotl"


@pytest.mark.parametrize("form", ["text", "json", "yaml", "name"])
def test_a_plan_without_a_claim_counts_on_the_charts_and_says_so(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a run on two nodes, which no cluster without one would take."""
    manifest = yaml.safe_load((tmp_path / "run.yaml").read_text())
    manifest["spec"] |= {"output": {"uri": "s3://bucket/tone"}, "resources": {"gpus": 1, "nodes": 2}}
    (tmp_path / "s3.yaml").write_text(yaml.safe_dump(manifest))
    assert main(["plan", "-f", "s3.yaml", "--config", "config.json", "--gpu", "T4", "-o", form]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert ("defaults.checkpointClaim, without which" in out) is (form != "name")
    assert main(["plan", "-f", "run.yaml", "--config", "config.json", "--gpu", "T4"]) == 0
    assert "defaults.checkpointClaim" not in capsys.readouterr().out


def test_init_and_convert_answer_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is written beside; on standard output there is one answer, never two."""
    flags = ["--model", "hf://a/b", "--dataset", "hf://a/c", "--to", "pvc://adapters/tone"]
    (tmp_path / "a.yaml").write_text("base_model: a/b\nadapter: lora\ndatasets: [{path: c/d}]\n")
    for number, command in enumerate((["init", *flags], ["convert", "a.yaml", "--name", "tone"])):
        for form in ("text", "json", "yaml", "name"):
            file = tmp_path / f"{number}-{form}.yaml"
            assert main([*command, "-f", str(file), "-o", form]) == 0
            out = capsys.readouterr().out
            assert yaml.safe_load(file.read_text())["metadata"] == {"name": "tone"}
            assert (out == "lorafinetune.lora-operator.io/tone\n") is (form == "name")
            assert (f"{file} is written" in out) is (form == "text")
            assert main([*command, "-f", "-", "-o", form]) == 0
            again = capsys.readouterr().out
            assert again == (file.read_text() if form == "text" else out)


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["ask", "tone", "hello?", "-o", "name"], "-o is name: an answer has none"),
        (["logs", "tone", "-o", "json"], "-o is json: a log is text"),
    ],
)
def test_a_form_that_an_answer_cannot_have_is_refused(
    arguments: list[str], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than taken for another, and before the cluster is asked."""
    assert main(arguments) == 1
    assert want in capsys.readouterr().err


WITHOUT_A_CLUSTER = ("init", "convert", "plan", "completion")


def test_every_verb_has_the_options_that_the_page_promises() -> None:
    """-o for all but the shells' completion; context and namespace for all that ask a cluster."""
    group: Any = get_command(app)
    options = {name: {each for param in verb.params for each in param.opts} for name, verb in group.commands.items()}
    assert [name for name, has in options.items() if not {"--output", "-o"} <= has] == ["completion"]
    asking = {"--context", "--namespace", "-n"}
    assert [name for name, has in options.items() if not asking <= has] == list(WITHOUT_A_CLUSTER)


def test_only_one_place_writes_yaml() -> None:
    """PyYAML alone writes numbers that were text."""
    users = [path.name for path in (ROOT / "operator/lora_client").rglob("*.py") if "dump(" in path.read_text()]
    assert users == ["yaml_text.py"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_three_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the variable that the command looks at."""
    assert main(["completion", shell]) == 0
    assert "_LORA_COMPLETE" in capsys.readouterr().out


def test_a_platform_without_hangups_will_do() -> None:
    """Windows."""
    program = "import signal; del signal.SIGHUP; from lora_client.__main__ import main; main(['--version'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer_image"},
    )
    assert done.stdout.startswith("lora ")


def lora(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lora_client", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer_image", **variables},
    )


def test_verbs_complete_in_a_shell() -> None:
    """As bash asks for them."""
    done = lora(_LORA_COMPLETE="complete_bash", COMP_WORDS="lora su", COMP_CWORD="1")
    assert done.stdout.split() == ["suspend"]


def test_help_is_there_at_once_and_names_every_verb() -> None:
    """Within 0.3 s on an idle machine; here by the processor's own time, three times as much on a busy one."""
    before = os.times()
    done = lora("--help")
    after = os.times()
    assert done.returncode == 0, done.stderr
    verbs = "list status explain validate run watch suspend resume logs clone compare pull ask serve init convert plan"
    assert all(f"\n  {verb} " in done.stdout for verb in verbs.split())
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.9


def test_help_imports_nothing_that_is_slow() -> None:
    """Which keeps it at once."""
    program = (
        "import sys; from lora_client.__main__ import main; main(['--help']); "
        "print(*sorted({n.split('.')[0] for n in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer_image"},
    )
    assert not {"kubernetes", "rich", "urllib3", "yaml", "pydantic"} & set(done.stderr.split())


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    """As with head."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_client", "completion", "bash"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer_image"},
    )
    os.close(reading)
    os.close(writing)
    assert process.communicate(timeout=300)[1] == b""
    assert process.returncode == 0
