"""What `lora convert` reads in a text, and what it refuses to take for supervised fine-tuning."""

import json

import pytest

from lora_client.errors import ClientError
from lora_client.foreign.convert import convert
from lora_client.foreign.elsewhere import LAUNCHED, SCALE
from lora_client.foreign.reading import read
from lora_client.foreign.tools import TOOLS

SFT = "trl sft --model_name_or_path a/b --use_peft --lora_alpha 16"
GIVEN = {"model_name_or_path": "a/b", "use_peft": True, "lora_alpha": 16}


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"{SFT}{end}"
            for end in (" 2>&1 | tee log", ">log", " > log 2>&1 &", " && echo --done", "; done", " || exit")
        ),
        f"pip install --upgrade trl\n{SFT}\nlm_eval --model hf --lora_alpha 64",
        f"{SFT} # and no more\necho done",
        f"LR=1e-4\nfor r in 8 16; do {SFT}; done",
        f"\ufeff{SFT}",
        *(SFT.replace(" --", f" {mark}{line}  --") for mark in ("\\", "^", "`", "") for line in ("\n", "\r\n")),
        SFT.replace(" --lora", "\n# the rank\n--lora"),
    ],
)
def test_a_command_ends_where_the_shell_ends_it(text: str) -> None:
    """Of several, the one with the most options counts; lines that begin with an option belong to the one above."""
    assert read(text).options == GIVEN


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("'<|im_end|>'", "<|im_end|>"),
        ('"a;b && c"', "a;b && c"),
        ("exp#1", "exp#1"),
        (r"a\ b", "a b"),
        ("$(wc -l < f | head)", "$(wc -l < f | head)"),
        ("'{\"a\": 1}'", {"a": 1}),
        ("2 x", [2, "x"]),
    ],
)
def test_an_operator_within_quotes_or_a_substitution_ends_nothing(value: str, want: object) -> None:
    """And a mark within a word begins no comment."""
    assert read(f"{SFT} --x {value} --y").options == {**GIVEN, "x": want, "y": True}


YAML = "base_model: a/b\nadapter: lora\nlora_r: 8\n"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"{YAML}\tlora_alpha: 16\n", "line 4, column 1: while scanning for the next token, found character"),
        (
            f"{YAML}lora_alpha 16\nseed: 1\n",
            "line 5, column 1: while scanning a simple key from line 4, could not find",
        ),
        (f"{YAML}seed: 'x\n", "while scanning a quoted scalar from line 4, found unexpected end of stream"),
        (f"{YAML}  seed: 1\n", "line 4, column 7: mapping values are not allowed here"),
        (
            f"{YAML}---\n{YAML}",
            "line 4, column 1: expected a single document in the stream from line 1, but found another",
        ),
        (f"{YAML}seed: \x07\n", "as YAML: unacceptable character"),
        (f"{YAML}seed: {'[' * 5000}\n", "as YAML: its lists and objects are nested too deeply"),
        ('{"base_model": "a/b",,}', "line 1, column 22: while parsing a flow node from line 1"),
    ],
)
def test_a_mistake_in_yaml_is_named_with_its_line(text: str, want: str) -> None:
    """A file of options is not said to hold none."""
    with pytest.raises(ClientError) as error:
        convert(text, name="x")
    assert str(error.value).startswith("The file cannot be read as YAML")
    assert want in str(error.value)


def test_the_source_of_a_script_is_said_not_to_be_read() -> None:
    """It is no YAML with a mistake."""
    with pytest.raises(ClientError, match=r"holds no options: name .*the command line of a script \(not its source\)"):
        convert("import x\n\nargs = {'lora_r': 8}\nif args:\n    x.train(**args)\n", name="x")


PREFERENCE = "only supervised fine-tuning can be converted, since preference and reward training are not offered"
FACTORY = "model_name_or_path: a/b\nfinetuning_type: lora\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        *((f"{YAML}rl: {rl}\n", f"rl is {rl}") for rl in ("dpo", "kto", "grpo")),
        (f"{YAML}reward_model: true\n", "reward_model is True"),
        (f"{YAML}process_reward_model: true\n", "process_reward_model is True"),
        *((f"{FACTORY}stage: {stage}\n", f"stage is {stage}") for stage in ("dpo", "rm", "ppo", "kto")),
        *((f"trl {verb} --model_name_or_path a/b", f"The command is trl {verb}") for verb in ("dpo", "reward", "grpo")),
        ("accelerate launch --num_processes 8 x/run_dpo.py --lora_r 8", "The script is x/run_dpo.py"),
        ("python -m trl.scripts.kto --lora_r 8", "The script is trl.scripts.kto"),
        ("model_name_or_path: a/b\nuse_peft: true\nbeta: 0.1\n", "beta is 0.1"),
        ("model_name_or_path: a/b\nuse_peft: true\nmax_prompt_length: 512\n", "max_prompt_length is 512"),
        (f"{SFT} --loss_type sigmoid", "loss_type is sigmoid"),
        (f"{SFT} --loss_type apo_zero sft", "loss_type is apo_zero"),
    ],
)
def test_another_objective_is_refused(text: str, what: str) -> None:
    """A run that learns preferences is no supervised one with some options left out."""
    with pytest.raises(ClientError) as error:
        convert(text, name="x")
    assert str(error.value).startswith(f"{what}: {PREFERENCE}; convert the supervised run before it")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"{FACTORY}stage: pt\n", "stage is pt"),
        (f"{YAML}pretraining_dataset: a/b\n", "pretraining_dataset is given"),
    ],
)
def test_pretraining_is_refused_with_the_way_to_learn_text(text: str, what: str) -> None:
    """Which a manifest has, and these configurations have elsewhere."""
    with pytest.raises(ClientError, match=f"{what}: only supervised .*for plain text, .* dataset.format: Text"):
        convert(text, name="x")


@pytest.mark.parametrize(
    "text",
    [
        f"{YAML}rl:\nreward_model: false\nrl: null\nbeta: null\n",
        f"{YAML}rl: none\n",
        f"{FACTORY}stage: sft\n",
        f"{SFT} --loss_type nll --output_dir out/dpo --run_name my-dpo.pyc",
        f"{SFT} --tag trl dpo_like && python run_dpo.py",
    ],
)
def test_supervised_fine_tuning_is_none_of_them(text: str) -> None:
    """Options of other objectives that are off, and names that hold one."""
    assert convert(text, name="x").manifest["kind"] == "LoRAFineTune"


HANDBOOK = "accelerate launch --config_file a/zero3.yaml --num_processes 8 scripts/sft.py"


@pytest.mark.parametrize(
    ("text", "command", "own"),
    [
        (f"{HANDBOOK} --config r/qlora.yaml --load_in_4bit=true", "r/qlora.yaml --gpus 8", "load_in_4bit"),
        (f"{HANDBOOK} r/qlora.yaml --lr 1", "r/qlora.yaml --gpus 8", "lr"),
        ("trl sft --config sft.yaml --seed 1 --use_peft --num_processes 2", "sft.yaml --gpus 2", "seed, use_peft"),
        ("accelerate launch -m axolotl.cli.train config.yml --learning-rate 1e-4", "config.yml", "learning_rate"),
        ("axolotl train config.yml\naxolotl inference config.yml --lora-model-dir=out --x --y", "config.yml", ""),
        ("llamafactory-cli train x/llama3.yaml lora_rank=16", "x/llama3.yaml", "lora_rank"),
        ("FORCE_TORCHRUN=1 llamafactory-cli train x.json", "x.json", ""),
        ("torchrun --nproc_per_node 4 --master_port 1 src/train.py x.yaml", "x.yaml --gpus 4", ""),
        ("axolotl train c.yml --launcher torchrun -- --nproc_per_node=8", "c.yml --gpus 8", ""),
        ("python sft.py r/qlora.yaml --lora_r 8 --learning_rate 1e-4", "r/qlora.yaml", "lora_r, learning_rate"),
        (f"{SFT} --lora_r 8 --config x.yaml", "x.yaml", "model_name_or_path, use_peft, lora_alpha, lora_r"),
    ],
)
def test_a_command_with_its_options_in_a_file_is_answered_with_the_file(text: str, command: str, own: str) -> None:
    """The run would have the tool's defaults in their place; the launcher's GPUs and what counts more are named."""
    with pytest.raises(ClientError) as error:
        convert(text, name="x")
    file = command.partition(" ")[0]
    first = f"; write the command's own options ({own}) into that file first" if own else ""
    assert str(error.value) == f"The command reads its options from {file}: lora convert {command} converts them{first}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("axolotl train 'my config.yml'", "my config.yml: lora convert 'my config.yml' converts them"),
        (
            "python x.py 'a b.yml' --n 'a lr=1'",
            "a b.yml: lora convert 'a b.yml' converts them; write the command's own options (n) into that file first",
        ),
        ("trl sft --config $CFG", "$CFG: lora convert FILE converts them, where FILE is what $CFG stands for"),
        (
            "axolotl train $DIR/a.yml",
            "$DIR/a.yml: lora convert FILE converts them, where FILE is what $DIR/a.yml stands for",
        ),
    ],
)
def test_the_file_is_named_as_the_shell_would_take_it(text: str, says: str) -> None:
    """Its name may hold blanks, or be known to the shell alone."""
    with pytest.raises(ClientError) as error:
        convert(text, name="x")
    assert str(error.value) == f"The command reads its options from {says}"


@pytest.mark.parametrize(
    "text",
    [
        "torchrun --nnodes 2 --nproc_per_node 8 -m trl.scripts.sft --config sft.yaml",
        "accelerate launch --num_machines 2 --num_processes 16 train.py sft.yaml",
    ],
)
def test_a_command_of_several_nodes_asks_for_the_gpus_of_one(text: str) -> None:
    """`--gpus` becomes resources.gpus, which a node has; the rest is said."""
    with pytest.raises(ClientError) as error:
        convert(text, name="x")
    assert str(error.value).endswith(
        "lora convert sft.yaml --gpus 8 converts them; then set resources.nodes: 2 and multiply "
        "training.effectiveBatchSize by 2"
    )
    left = convert(f"torchrun --nnodes 2 --nproc_per_node 8 sft.py {SFT[8:]}", name="x", gpus=8).left
    assert {why for name, _, why in left if name in ("nnodes", "nproc_per_node")} == {LAUNCHED}


@pytest.mark.parametrize("model", ["model_name_or_path", "base_model"])
@pytest.mark.parametrize("own", ["--lora_r 16", "--learning_rate 1e-4"])
def test_a_script_with_a_run_of_its_own_is_converted_beside_a_file(model: str, own: str) -> None:
    """The file is most likely the data, into which nobody should write options."""
    found = convert(f"python finetune.py data/train.json --{model} a/b {own}", name="x")
    assert found.manifest["spec"]["model"]["uri"] == "hf://a/b"
    assert [value for name, value, _ in found.left if name == "first argument"] == ["data/train.json"]


def test_the_value_of_an_option_is_no_file_of_options() -> None:
    """Though it is the first argument, and ends like one."""
    found = convert("python x.py --dataset_path=x.json --lora_r 16", name="x")
    assert found.manifest["spec"]["lora"]["rank"] == 16
    assert not [value for name, value, _ in found.left if name == "first argument"]


@pytest.mark.parametrize("text", [f"python prepare.py config.yaml && {SFT}", f"{SFT} --report_to none --out x.yaml"])
def test_a_file_that_is_no_configuration_is_none(text: str) -> None:
    """Of another script, or an option's value."""
    assert convert(text, name="x").manifest["spec"]["lora"]["alpha"] == 16


def test_an_option_of_the_launcher_is_none_of_the_tool_s() -> None:
    """How GPUs share the work is decided here."""
    left = convert(f"accelerate launch --config_file zero3.yaml sft.py {SFT[8:]}", name="x").left
    assert [why for name, _, why in left if name == "config_file"] == [SCALE]


VALUES = (True, False, "x", 3, 0, 0.1, "no", "steps", "auto", "none", -1, "", ["a"], {"a": 1})
BASES = (
    ("axolotl", {"base_model": "a/b", "datasets": [{"path": "c/d"}], "adapter": "lora"}, "test_datasets use_mlflow"),
    ("trl", {"model_name_or_path": "a/b", "dataset_name": "c/d", "use_peft": True}, "dataset_test_split use_rslora"),
    ("llama-factory", {"model_name_or_path": "a/b", "dataset": "c/d"}, "pissa_init quantization_type eval_dataset"),
)
COMMON = "bf16 fp16 max_steps eval_strategy eval_steps hub_model_id seed save_steps report_to use_dora max_grad_norm"


@pytest.mark.parametrize(("tool", "base", "own"), BASES, ids=tuple(TOOLS[tool][0] for tool, *_ in BASES))
def test_no_option_vanishes(tool: str, base: dict[str, object], own: str) -> None:
    """Whatever its value: it is mapped, left with a reason, or to be filled in."""
    for option in f"{COMMON} {own}".split():
        for value in VALUES:
            try:
                found = convert(json.dumps({**base, option: value}), name="x", tool=tool)
            except ClientError:
                continue
            named = " ".join(
                [*(names for names, _ in found.mapped), *(name for name, *_ in found.left), *found.to_fill]
            )
            assert option in named, (option, value)
