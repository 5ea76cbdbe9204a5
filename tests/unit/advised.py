"""A spec as its user has it, planned on a GPU with rows of some kind, and what is advised of it."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.unit.advice_facts import make_config, make_preflight
from tests.unit.fit_models import Config

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.hint_checks import Columns
from lora_trainer.plan.hints import Spoken, before, spoken
from lora_trainer.plan.planning import plan_of
from lora_trainer.spec.advice import Advice
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.gpus import Gpu
from lora_trainer.spec.preflight import Preflight
from lora_trainer.spec.run_plan import RunPlan

Spec = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run on a model, on `gpu` or the one that its spec names; `rows` are other counts than those of the 10,000 rows
    that preflight finds, None where it found none, `columns` those of the first of them."""

    model: Config
    spec: Spec = field(default_factory=dict)
    gpu: Gpu | None = None
    rows: Mapping[str, int] | None = field(default_factory=dict)
    columns: Columns | None = None

    @property
    def config(self) -> TrainConfig:
        """By the trainer's own rules. Raises `ManifestError`."""
        return make_config(**self.spec)

    def changed(self, path: str, value: Any) -> "Case":
        """With another value of a field; None removes it."""
        spec = copy.deepcopy(self.spec)
        *parents, last = path.split(".")
        inner = spec
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner.pop(last, None)
        if value is not None:
            inner[last] = value
        return dataclasses.replace(self, spec=spec)

    def preflight(self) -> Preflight | None:
        """What was found out about its rows."""
        return None if self.rows is None else make_preflight(**self.rows)

    def plan(self) -> RunPlan:
        """As preflight makes it. Raises `AdapterError`."""
        shape, found = architecture_of(self.model), self.preflight()
        known: dict[str, Any] = {}
        if found is not None:
            rows = found.dataset
            known = {
                "tokens": rows.tokens,
                "rows": rows.train_samples,
                "target_share": rows.target_tokens / rows.tokens,
                "longest": rows.longest_tokens,
                "p95": rows.p95_tokens,
            }
        return plan_of(self.config, shape, plan_adapter(self.config.lora, shape), gpu=self.gpu, **known)

    def advice(self) -> tuple[Advice, ...]:
        """What preflight says of it."""
        return before(self.config, self.preflight(), self.plan(), architecture_of(self.model), columns=self.columns)

    def said(self) -> dict[str, Spoken]:
        """The same in words, by code."""
        return {one.code.value: one for one in spoken(self.advice())}
