"""Whoever follows a piece of advice has a spec that is accepted, loses the advice, and is not told the opposite."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.unit.advice_facts import RISE, ended_facts
from tests.unit.advised import Case
from tests.unit.fit_models import DEEPSEEK_V3, GPT_OSS, LLAMA_4, MIXTRAL, MODELS, QWEN2_MOE, QWEN3_MOE, llama

from lora_trainer.contract.advice import Code
from lora_trainer.contract.config import DatasetFormat
from lora_trainer.contract.gpus import find_gpu
from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import shape_of
from lora_trainer.plan.hint_checks import Columns
from lora_trainer.plan.hints import after, spoken

LLAMA = llama()
SMALL = MODELS["SmolLM2-135M"][0]
H100, H200, A100 = (find_gpu(name) for name in ("H100", "H200", "A100 80"))
MIXTURES = {"Mixtral": MIXTRAL, "Qwen3-MoE": QWEN3_MOE, "gpt-oss": GPT_OSS}


def learned(tokens: int) -> dict[str, int]:
    """Rows with so many learned tokens."""
    return {"target_tokens": tokens, "tokens": 4 * tokens}


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A run that gets `code`, in a sentence that holds `words` and `changes`, by field; `rows` are other counts that
    the changes lead to, `never` what would be said on the contrary."""

    code: Code
    case: Case
    words: str
    changes: Mapping[str, Any]
    rows: Mapping[str, int] = field(default_factory=dict)
    never: tuple[Code, ...] = ()

    def followed(self) -> Case:
        """The run with the changes."""
        found = self.case
        for path, value in self.changes.items():
            found = found.changed(path, value)
        return replace(found, rows={**(self.case.rows or {}), **self.rows})


def llama_on(gpu: Any = H100, rows: Mapping[str, int] | None = None, **spec: Any) -> Case:
    """Llama-3-8B on a GPU."""
    return Case(model=LLAMA, spec=spec, gpu=gpu, rows=rows or {})


def columns_of(kind: DatasetFormat, read: Mapping[str, str], *unread: str) -> Columns:
    """Columns of a data set of which some are not read."""
    return Columns(format=kind, read=read, unread=unread)


def small(rows: Mapping[str, int], **spec: Any) -> Case:
    """SmolLM2-135M on an H100."""
    return Case(model=SMALL, spec=spec, gpu=H100, rows=rows)


TABLE: dict[str, Followed] = {
    "a rank that is too low": Followed(
        code=Code.RANK_TOO_LOW,
        case=llama_on(rows=learned(300_000_000)),
        words="Raise spec.lora.rank to 64,",
        changes={"lora.rank": 64},
    ),
    "a rank that is too low on query and value, where all layers suffice": Followed(
        code=Code.RANK_TOO_LOW,
        case=small(learned(3_000_000), lora={"layers": "QueryValue"}),
        words="Set spec.lora.layers to AllLinear, so that",
        changes={"lora.layers": "AllLinear"},
    ),
    "a rank that is too low on query and value, and on all layers": Followed(
        code=Code.RANK_TOO_LOW,
        case=small(learned(80_000_000), lora={"targetModules": ["q_proj", "v_proj"]}),
        words="Set spec.lora.layers to AllLinear in place of targetModules, and spec.lora.rank to 256, so that",
        changes={"lora.layers": "AllLinear", "lora.targetModules": None, "lora.rank": 256},
    ),
    "a rank that PiSSA cannot have above": Followed(
        code=Code.RANK_TOO_LOW,
        case=small(learned(20_000_000), lora={"init": "PiSSA"}),
        words="Raise spec.lora.rank to 64,",
        changes={"lora.rank": 64},
        never=(Code.SERVE_MERGED,),
    ),
    "alpha above twice the rank": Followed(
        code=Code.ALPHA_RATIO,
        case=llama_on(lora={"rank": 16, "alpha": 64}),
        words="Set spec.lora.alpha from 16 to 32,",
        changes={"lora.alpha": 32},
        never=(Code.ALPHA_AT_HIGH_RANK,),
    ),
    "alpha below a high rank": Followed(
        code=Code.ALPHA_RATIO,
        case=llama_on(rows=learned(10**9), lora={"rank": 256, "alpha": 128}),
        words="Set spec.lora.alpha to 256,",
        changes={"lora.alpha": 256},
        never=(Code.ALPHA_AT_HIGH_RANK,),
    ),
    "alpha below a high rank at a low rate": Followed(
        code=Code.ALPHA_RATIO,
        case=llama_on(rows=learned(10**9), lora={"rank": 256, "alpha": 128}, training={"learningRate": "0.0001"}),
        words="Set spec.lora.alpha from 256 to 512,",
        changes={"lora.alpha": 512},
        never=(Code.ALPHA_AT_HIGH_RANK,),
    ),
    **{
        f"alpha at a high rank, {name}": Followed(
            code=Code.ALPHA_AT_HIGH_RANK,
            case=llama_on(rows=learned(10**9), lora={"rank": 128}, training={"learningRate": rate}),
            words="Lower spec.training.learningRate, to 0.0001 for a start, or set spec.lora.alpha to 128:",
            changes=changes,
            never=(Code.ALPHA_RATIO, Code.LEARNING_RATE),
        )
        for name, rate, changes in (
            ("whose rate is lowered", "0.0002", {"training.learningRate": "0.0001"}),
            ("whose high rate is lowered", "0.001", {"training.learningRate": "0.0001"}),
            ("whose alpha is lowered", "0.0002", {"lora.alpha": 128}),
        )
    },
    "attention alone": Followed(
        code=Code.FEW_LAYERS,
        case=llama_on(lora={"layers": "Attention"}),
        words="Set spec.lora.layers to AllLinear, at",
        changes={"lora.layers": "AllLinear"},
    ),
    "modules of attention by name": Followed(
        code=Code.FEW_LAYERS,
        case=llama_on(lora={"targetModules": ["q_proj", "v_proj"]}),
        words="Set spec.lora.layers to AllLinear in place of targetModules, at",
        changes={"lora.layers": "AllLinear", "lora.targetModules": None},
    ),
    "attention alone of a mixture with a shared expert": Followed(
        code=Code.FEW_LAYERS,
        case=Case(model=QWEN2_MOE, spec={"lora": {"layers": "Attention"}}, gpu=H200),
        words="Set spec.lora.layers to AllLinear, at",
        changes={"lora.layers": "AllLinear"},
    ),
    "three epochs": Followed(
        code=Code.SEVERAL_EPOCHS,
        case=llama_on(training={"epochs": "3"}),
        words="Try one epoch first,",
        changes={"training.epochs": "1"},
    ),
    "steps of three epochs": Followed(
        code=Code.SEVERAL_EPOCHS,
        case=llama_on(training={"maxSteps": 1_900}),
        words="Set spec.training.maxSteps to 612 first, which is one epoch,",
        changes={"training.maxSteps": 612},
    ),
    "a large batch": Followed(
        code=Code.LARGE_BATCH,
        case=llama_on(training={"effectiveBatchSize": 64}),
        words="Lower spec.training.effectiveBatchSize to 32 or less:",
        changes={"training.effectiveBatchSize": 32},
    ),
    "a large batch of 48 processes": Followed(
        code=Code.LARGE_BATCH,
        case=llama_on(training={"effectiveBatchSize": 64}, resources={"gpus": 48}),
        words="Lower spec.training.effectiveBatchSize to 48, a row for each training process:",
        changes={"training.effectiveBatchSize": 48},
    ),
    "a large batch of micro-batches that do not divide 32": Followed(
        code=Code.LARGE_BATCH,
        case=llama_on(training={"effectiveBatchSize": 96, "microBatchSize": 24}),
        words="Lower spec.training.effectiveBatchSize to 24 or less:",
        changes={"training.effectiveBatchSize": 24},
    ),
    "a large batch of large micro-batches": Followed(
        code=Code.LARGE_BATCH,
        case=llama_on(training={"effectiveBatchSize": 96, "microBatchSize": 48}),
        words="Lower spec.training.effectiveBatchSize to 32 or less, and microBatchSize (48) to a divisor of it:",
        changes={"training.effectiveBatchSize": 32, "training.microBatchSize": 16},
    ),
    "a rate that is too low": Followed(
        code=Code.LEARNING_RATE,
        case=llama_on(training={"learningRate": "0.00001"}),
        words="Set spec.training.learningRate from 0.00005 to 0.001, 0.0002 for a start:",
        changes={"training.learningRate": "0.0002"},
    ),
    "a rate that is too low at a high rank": Followed(
        code=Code.LEARNING_RATE,
        case=llama_on(rows=learned(10**9), lora={"rank": 256}, training={"learningRate": "0.00001"}),
        words="Set spec.training.learningRate from 0.00005 to 0.001, 0.0001 for a start at rank 256:",
        changes={"training.learningRate": "0.0001"},
        never=(Code.ALPHA_AT_HIGH_RANK,),
    ),
    **{
        f"quantization that is not needed, set to {value}": Followed(
            code=Code.QUANTIZATION_NOT_NEEDED,
            case=llama_on(quantization="NF4"),
            words="Set spec.quantization to Auto or None:",
            changes={"quantization": value},
            never=(Code.QUANTIZATION_WOULD_FIT,),
        )
        for value in ("Auto", "None")
    },
    **{
        f"quantization that would fit, set to {value}": Followed(
            code=Code.QUANTIZATION_WOULD_FIT,
            case=llama_on(find_gpu("18GiB"), quantization="None"),
            words="Set spec.quantization to Auto or NF4,",
            changes={"quantization": value},
            never=(Code.QUANTIZATION_NOT_NEEDED,),
        )
        for value in ("Auto", "NF4")
    },
    "rows that are cut": Followed(
        code=Code.ROWS_CUT,
        case=llama_on(rows={"truncated_samples": 3, "truncated_tokens": 90}),
        words="Raise spec.training.maxSequenceLength,",
        changes={"training.maxSequenceLength": 4096},
        rows={"truncated_samples": 0, "truncated_tokens": 0},
    ),
    **{
        f"columns {' and '.join(columns.unread)} beside {' and '.join(columns.read.values())}, {way}": Followed(
            code=Code.COLUMNS_NOT_READ,
            case=replace(llama_on(), columns=columns),
            words=words,
            changes=changes,
        )
        for columns, words, mapping in (
            (
                columns_of(DatasetFormat.TEXT, {"text": "text"}, "id", "summary"),
                "Map prompt to text and completion to summary in spec.dataset.columns to learn from summary, too,",
                {"prompt": "text", "completion": "summary"},
            ),
            (
                columns_of(DatasetFormat.PROMPT_COMPLETION, {"prompt": "question", "completion": "answer"}, "Input"),
                "Map instruction to question, input to Input and output to answer in spec.dataset.columns to learn",
                {"instruction": "question", "input": "Input", "output": "answer"},
            ),
            (
                columns_of(
                    DatasetFormat.INSTRUCTION,
                    {"system": "system", "instruction": "instruction", "output": "output"},
                    "context",
                ),
                "Map instruction to instruction, input to context and output to output in spec.dataset.columns to",
                {"instruction": "instruction", "input": "context", "output": "output"},
            ),
            (
                columns_of(
                    DatasetFormat.PROMPT_COMPLETION, {"prompt": "question", "completion": "answer"}, "system_prompt"
                ),
                "Map system to system_prompt in spec.dataset.columns to learn from system_prompt, too,",
                {"system": "system_prompt"},
            ),
            (
                columns_of(
                    DatasetFormat.INSTRUCTION,
                    {"input": "input", "instruction": "instruction", "output": "output"},
                    "context",
                    "system_prompt",
                ),
                "Write what is in context and system_prompt into the columns that are read, or set",
                {},
            ),
        )
        for way, changes in (
            ("learned", {"dataset": {"uri": "hf://acme/chats", "columns": mapping}}),
            ("left out", {"dataset": {"uri": "hf://acme/chats", "format": columns.format.value}}),
        )
        if mapping or way == "left out"
    },
    "few held-out rows of a share": Followed(
        code=Code.FEW_HELD_OUT_ROWS,
        case=llama_on(rows={"validation_samples": 10}),
        words="Raise spec.dataset.validationFraction,",
        changes={"dataset": {"uri": "hf://acme/chats", "validationFraction": "0.04"}},
        rows={"validation_samples": 20},
    ),
    "few held-out rows, since no more may be": Followed(
        code=Code.FEW_HELD_OUT_ROWS,
        case=llama_on(
            rows={"validation_samples": 10},
            dataset={"uri": "hf://acme/chats", "maxValidationRows": 10, "validationFraction": "0.5"},
        ),
        words="Raise spec.dataset.maxValidationRows (10):",
        changes={"dataset.maxValidationRows": 20},
        rows={"validation_samples": 20},
    ),
    "few held-out rows of their own": Followed(
        code=Code.FEW_HELD_OUT_ROWS,
        case=llama_on(
            rows={"validation_samples": 10}, dataset={"uri": "hf://acme/chats", "validationUri": "hf://acme/held-out"}
        ),
        words="Name more rows in spec.dataset.validationUri (hf://acme/held-out):",
        changes={"dataset.validationUri": "hf://acme/more"},
        rows={"validation_samples": 20},
    ),
    "little main memory": Followed(
        code=Code.POD_MEMORY,
        case=llama_on(resources={"memory": "1Gi"}),
        words="Give the pods 5Gi or more with spec.resources.memory in a new LoRAFineTune:",
        changes={"resources.memory": "5Gi"},
    ),
    **{
        f"an adapter that is not served, with merge {value}": Followed(
            code=Code.SERVE_MERGED,
            case=llama_on(lora={"variant": "DoRA"}),
            words="Set spec.output.merge to Both or Merged if vLLM is to serve the result:",
            changes={"output": {"uri": "pvc://adapters/tone", "merge": value}},
        )
        for value in ("Both", "Merged")
    },
    **{
        f"experts of {name} in a plain adapter": Followed(
            code=Code.MODULES_NOT_ADAPTED,
            case=Case(model=model, gpu=H200),
            words="Name the experts (mlp.experts.gate_up_proj, mlp.experts.down_proj) in spec.lora.targetParameters to "
            "adapt them, too:",
            changes={"lora.targetParameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
            never=(Code.FEW_LAYERS,),
        )
        for name, model in MIXTURES.items()
    },
    **{
        f"experts beside {name}": Followed(
            code=Code.MODULES_NOT_ADAPTED,
            case=Case(model=MIXTRAL, gpu=H200, spec={"lora": lora}),
            words=f"Name the experts (mlp.experts.gate_up_proj, mlp.experts.down_proj) in spec.lora.targetParameters, "
            f"with {', '.join(f'{path} {written}' for path, written, _ in others)}, to adapt them, too:",
            changes={
                "lora.targetParameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
                **{f"lora.{path}": value for path, _, value in others},
            },
        )
        for name, lora, others in (
            ("DoRA", {"variant": "DoRA"}, [("variant", "LoRA", "LoRA")]),
            ("PiSSA", {"init": "PiSSA"}, [("init", "Default", "Default")]),
            (
                "DoRA and dropout",
                {"variant": "DoRA", "dropout": "0.05"},
                [("variant", "LoRA", "LoRA"), ("dropout", '"0"', "0")],
            ),
        )
    },
}
"""A run for each way in which a code is said."""

AT_END: dict[str, tuple[Code, dict[str, Any], str, dict[str, Any]]] = {
    "a better adapter before the end": (
        Code.HELD_OUT_LOSS_ROSE,
        {"on_the_way": RISE},
        "Set spec.training.earlyStoppingPatience,",
        {"training": {"evalSteps": 100, "earlyStoppingPatience": 3}},
    ),
}
"""What only another run would show to have helped: its code, its end, words, and the spec of the next run."""
WITHOUT_A_CHANGE = {
    Code.MANY_DUPLICATES,
    Code.STILL_IMPROVING,
    Code.CLAIM_SIZE,
    Code.LANGUAGE_MODEL_ALONE,
}
"""Codes that name no change of a spec, or none that the next run needs."""


def test_every_code_that_names_a_change_is_followed_here() -> None:
    """So that a new one is."""
    followed = {one.code for one in TABLE.values()} | {code for code, *_ in AT_END.values()}
    assert followed | WITHOUT_A_CHANGE == set(Code)
    assert not followed & WITHOUT_A_CHANGE


@pytest.mark.parametrize("name", TABLE)
def test_followed_advice_is_accepted_gone_and_not_contradicted(name: str) -> None:
    """By the trainer's own rules, of the spec and of the model's adapter."""
    one = TABLE[name]
    assert one.words in one.case.said()[one.code.value].message
    done = one.followed()
    plan_adapter(done.config.lora, shape_of(done.model))
    said = done.said()
    assert one.code.value not in said
    assert not {code.value for code in one.never} & said.keys()
    assert one.case.plan().fits is not True or done.plan().fits is not False


@pytest.mark.parametrize("name", AT_END)
def test_what_the_end_of_a_run_advises_is_accepted(name: str) -> None:
    """In the next run; and is not advised against there."""
    code, end, words, spec = AT_END[name]
    found = {one.code: one for one in spoken(after(ended_facts(**end)))}
    assert words in found[code].message
    before = set(llama_on().said())
    assert set(llama_on(**spec).said()) == before


@pytest.mark.parametrize(
    ("code", "case"),
    [
        *(
            (Code.FEW_LAYERS, Case(model=model, spec={"lora": {"layers": "Attention"}}, gpu=H200))
            for model in MIXTURES.values()
        ),
        (Code.FEW_LAYERS, Case(model=MIXTRAL, spec={"lora": {"targetModules": ["q_proj", "v_proj"]}}, gpu=H200)),
        (Code.FEW_LAYERS, Case(model=DEEPSEEK_V3, spec={"lora": {"layers": "Attention"}}, gpu=H200)),
        (
            Code.FEW_LAYERS,
            llama_on(lora={"layers": "Attention", "excludeModules": ["gate_proj", "up_proj", "down_proj"]}),
        ),
    ],
    ids=str,
)
def test_no_advice_is_given_that_changes_nothing(code: Code, case: Case) -> None:
    """Where both presets adapt the same modules, or neither fewer GPUs nor more rows can be had."""
    assert code.value not in case.said()


def test_a_rank_that_cannot_be_is_not_named() -> None:
    """Above what holds the tokens, what PiSSA can have, or what vLLM serves: then another remedy is."""
    tokens = 10**10
    (found,) = [case.said()[Code.RANK_TOO_LOW.value].message for case in [small(learned(tokens), lora={"rank": 8})]]
    assert found.startswith("Take a larger model or fewer tokens, since not even rank 512 holds")
    pissa = small(learned(tokens), lora={"rank": 8, "init": "PiSSA"}).said()[Code.RANK_TOO_LOW.value].message
    assert pissa.startswith("Take a larger model or fewer tokens, since not even rank 128 holds")
    merged = small(learned(tokens), output={"uri": "pvc://adapters/tone", "merge": "Merged"})
    assert "rank 1024 holds" in merged.said()[Code.RANK_TOO_LOW.value].message
    few = small(learned(tokens), lora={"rank": 8, "layers": "QueryValue"}).said()[Code.RANK_TOO_LOW.value].message
    assert few.startswith("Take a larger model or fewer tokens, since not even rank 512 on all layers holds")


def test_a_divided_base_is_neither_merged_nor_given_adapters_on_experts_where_it_is() -> None:
    """Both need the whole base on each GPU: the run would not fit."""
    divided = Case(model=MIXTRAL, spec={"resources": {"gpus": 8}, "lora": {"variant": "DoRA"}}, gpu=A100)
    assert divided.plan().sharded
    said = divided.said()
    assert "lora-trainer merge" in said[Code.SERVE_MERGED.value].message
    experts = said[Code.MODULES_NOT_ADAPTED.value].message
    assert "variant LoRA" in experts
    assert "GPUs that hold the whole base each" in experts


def test_experts_of_llama_4_are_named() -> None:
    """Otherwise than others."""
    case = Case(model=LLAMA_4, gpu=H200)
    message = case.said()[Code.MODULES_NOT_ADAPTED.value].message
    names = message.partition("(")[2].partition(")")[0].split(", ")
    assert Code.MODULES_NOT_ADAPTED.value not in case.changed("lora.targetParameters", names).said()


def test_modules_that_a_preset_passes_over_beside_experts_are_named() -> None:
    """Of DeepSeek-V3: whoever names the experts alone is told the others."""
    case = Case(model=DEEPSEEK_V3, gpu=H200)
    message = case.said()[Code.MODULES_NOT_ADAPTED.value].message
    experts = message.partition("(")[2].partition(")")[0].split(", ")
    others = [f"{name}.weight" for name in message.partition("the weights of ")[2].partition(":")[0].split(", ")]
    adapted = case.changed("lora.targetParameters", experts)
    assert adapted.said()[Code.MODULES_NOT_ADAPTED.value].message.startswith("Name their weights in spec.lora")
    assert Code.MODULES_NOT_ADAPTED.value not in case.changed("lora.targetParameters", [*experts, *others]).said()
