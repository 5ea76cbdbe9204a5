"""Whoever follows a piece of advice has a spec that is accepted, loses the advice, and is not told the opposite."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.unit.advice_facts import RISE, ended_facts
from tests.unit.advised import Case
from tests.unit.fit_models import DEEPSEEK_V3, GPT_OSS, LLAMA_4, MIXTRAL, MODELS, QWEN2_MOE, QWEN3_MOE, llama

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.hint_checks import Columns
from lora_trainer.plan.hints import after, spoken
from lora_trainer.spec.advice import Code
from lora_trainer.spec.config import DatasetFormat
from lora_trainer.spec.gpus import find_gpu

LLAMA = llama()
SMALL = MODELS["SmolLM2-135M"][0]
H100, H200, A100 = (find_gpu(name) for name in ("H100", "H200", "A100 80"))
MIXTURES = {"Mixtral": MIXTRAL, "Qwen3-MoE": QWEN3_MOE, "gpt-oss": GPT_OSS}


def learned(tokens: int) -> dict[str, int]:
    """Rows with so many target tokens."""
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
        words="rank 64 would hold what there is to learn",
        changes={"lora.rank": 64},
    ),
    "a rank that is too low on query and value, where all layers suffice": Followed(
        code=Code.RANK_TOO_LOW,
        case=small(learned(3_000_000), lora={"layers": "QueryValue"}),
        words="adapt more layers,",
        changes={"lora.layers": "AllLinear"},
    ),
    "a rank that is too low for PiSSA": Followed(
        code=Code.RANK_TOO_LOW,
        case=small(learned(20_000_000), lora={"init": "PiSSA"}),
        words="rank 64 would hold",
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
        words="Set spec.lora.layers to AllLinear, without targetModules,",
        changes={"lora.layers": "AllLinear"},
    ),
    "modules of attention by name": Followed(
        code=Code.FEW_LAYERS,
        case=llama_on(lora={"targetModules": ["q_proj", "v_proj"]}),
        words="Set spec.lora.layers to AllLinear, without targetModules,",
        changes={"lora.layers": "AllLinear", "lora.targetModules": None},
    ),
    "attention alone of a mixture with a shared expert": Followed(
        code=Code.FEW_LAYERS,
        case=Case(model=QWEN2_MOE, spec={"lora": {"layers": "Attention"}}, gpu=H200),
        words="Set spec.lora.layers to AllLinear, without targetModules,",
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
        words="Try one epoch first,",
        changes={"training.maxSteps": 612},
    ),
    "a large batch": Followed(
        code=Code.LARGE_BATCH,
        case=llama_on(training={"effectiveBatchSize": 64}),
        words="Lower spec.training.effectiveBatchSize to 32:",
        changes={"training.effectiveBatchSize": 32},
    ),
    "a large batch of 48 processes": Followed(
        code=Code.LARGE_BATCH,
        case=llama_on(training={"effectiveBatchSize": 64}, resources={"gpus": 48}),
        words="Lower spec.training.effectiveBatchSize to 48:",
        changes={"training.effectiveBatchSize": 48},
    ),
    "a rate that is too low": Followed(
        code=Code.LEARNING_RATE,
        case=llama_on(training={"learningRate": "0.00001"}),
        words="Set spec.training.learningRate from 0.00005 to 0.001, 0.0002 for a start,",
        changes={"training.learningRate": "0.0002"},
    ),
    "a rate that is too low at a high rank": Followed(
        code=Code.LEARNING_RATE,
        case=llama_on(rows=learned(10**9), lora={"rank": 256}, training={"learningRate": "0.00001"}),
        words="and half of that from rank 128 on:",
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
                "Map summary in spec.dataset.columns,",
                {"prompt": "text", "completion": "summary"},
            ),
            (
                columns_of(DatasetFormat.PROMPT_COMPLETION, {"prompt": "question", "completion": "answer"}, "Input"),
                "Map Input in spec.dataset.columns,",
                {"instruction": "question", "input": "Input", "output": "answer"},
            ),
            (
                columns_of(
                    DatasetFormat.INSTRUCTION,
                    {"system": "system", "instruction": "instruction", "output": "output"},
                    "context",
                ),
                "Map context in spec.dataset.columns,",
                {"instruction": "instruction", "input": "context", "output": "output"},
            ),
            (
                columns_of(
                    DatasetFormat.PROMPT_COMPLETION, {"prompt": "question", "completion": "answer"}, "system_prompt"
                ),
                "Map system_prompt in spec.dataset.columns,",
                {"system": "system_prompt"},
            ),
            (
                columns_of(
                    DatasetFormat.INSTRUCTION,
                    {"input": "input", "instruction": "instruction", "output": "output"},
                    "context",
                    "system_prompt",
                ),
                "or write what is in there into the columns that are read, or set",
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
        words="Hold out more rows by",
        changes={"dataset": {"uri": "hf://acme/chats", "validationFraction": "0.04"}},
        rows={"validation_samples": 20},
    ),
    "few held-out rows, since no more may be": Followed(
        code=Code.FEW_HELD_OUT_ROWS,
        case=llama_on(
            rows={"validation_samples": 10},
            dataset={"uri": "hf://acme/chats", "maxValidationRows": 10, "validationFraction": "0.5"},
        ),
        words="Hold out more rows by",
        changes={"dataset.maxValidationRows": 20},
        rows={"validation_samples": 20},
    ),
    "few held-out rows of their own": Followed(
        code=Code.FEW_HELD_OUT_ROWS,
        case=llama_on(
            rows={"validation_samples": 10}, dataset={"uri": "hf://acme/chats", "validationUri": "hf://acme/held-out"}
        ),
        words="Hold out more rows by",
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
            words="Set spec.output.merge to Both or Merged if vLLM is to serve the result,",
            changes={"output": {"uri": "pvc://adapters/tone", "merge": value}},
        )
        for value in ("Both", "Merged")
    },
    **{
        f"experts of {name} in a plain adapter": Followed(
            code=Code.MODULES_NOT_ADAPTED,
            case=Case(model=model, gpu=H200),
            words="Name their weights in spec.lora.targetParameters to adapt them,",
            changes={"lora.targetParameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
            never=(Code.FEW_LAYERS,),
        )
        for name, model in MIXTURES.items()
    },
    **{
        f"experts beside {name}": Followed(
            code=Code.MODULES_NOT_ADAPTED,
            case=Case(model=MIXTRAL, gpu=H200, spec={"lora": lora}),
            words="in a plain LoRA without dropout",
            changes={
                "lora.targetParameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
                **others,
            },
        )
        for name, lora, others in (
            ("DoRA", {"variant": "DoRA"}, {"lora.variant": "LoRA"}),
            ("PiSSA", {"init": "PiSSA"}, {"lora.init": "Default"}),
            ("dropout", {"dropout": "0.05"}, {"lora.dropout": "0"}),
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
    plan_adapter(done.config.lora, architecture_of(done.model))
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


def test_a_divided_base_is_neither_merged_nor_given_adapters_on_experts_where_it_is() -> None:
    """Both need the whole base on each GPU: the run would not fit."""
    divided = Case(model=MIXTRAL, spec={"resources": {"gpus": 8}, "lora": {"variant": "DoRA"}}, gpu=A100)
    assert divided.plan().sharded
    said = divided.said()
    assert "lora-trainer merge where the run's base is divided" in said[Code.SERVE_MERGED.value].message
    assert "GPUs that hold the whole base each" in said[Code.MODULES_NOT_ADAPTED.value].message


def left_of(case: Case) -> str:
    """What is not adapted."""
    return case.said()[Code.MODULES_NOT_ADAPTED.value].evidence


def experts_in(evidence: str) -> list[str]:
    """The matrices of experts."""
    return evidence.partition("experts (")[2].partition(", 9")[0].split(", ")


def test_experts_of_llama_4_are_named() -> None:
    """Otherwise than others."""
    case = Case(model=LLAMA_4, gpu=H200)
    adapted = case.changed("lora.targetParameters", experts_in(left_of(case)))
    assert Code.MODULES_NOT_ADAPTED.value not in adapted.said()


def test_modules_that_a_preset_passes_over_beside_experts_are_named() -> None:
    """Of DeepSeek-V3: whoever names the experts alone is told the others."""
    case = Case(model=DEEPSEEK_V3, gpu=H200)
    found = left_of(case)
    experts = experts_in(found)
    others = [f"{name}.weight" for name in found.partition("modules named ")[2].split(", ")]
    adapted = case.changed("lora.targetParameters", experts)
    assert left_of(adapted).endswith("of the kind deepseek_v3: modules named gate_proj, up_proj, down_proj")
    assert Code.MODULES_NOT_ADAPTED.value not in case.changed("lora.targetParameters", [*experts, *others]).said()
