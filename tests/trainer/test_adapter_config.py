"""What PEFT makes of the configuration that lies beside an adapter's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.families import make_family

from lora_trainer.model.convert import copy_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.result.adapter_config import check_config
from lora_trainer.result.export import write_adapter
from lora_trainer.spec.config import Quantization
from lora_trainer.storage.base import open_folder


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama", {"layerIndices": [1], "scaling": "RankStabilized", "rankPattern": {"q_proj": 2}}),
        ("qwen3", {"init": "PiSSA"}),
        ("gemma2", {"modulesToSave": ["embed_tokens"], "variant": "DoRA"}),
        # PEFT writes the name of the input embedding, and does not know it again.
        ("gpt2", {"modulesToSave": ["lm_head"]}),
        ("mixtral", {"targetParameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ],
)
def test_what_a_run_writes_fits_together(tmp_path: Path, cpu: Device, kind: str, lora: dict[str, Any]) -> None:
    """Kinds of adapters and of models in which PEFT names things in its own way."""
    base = open_folder(make_family(tmp_path / "base", kind))
    config = make_config(lora={"rank": 4, **lora}).lora
    adapted = adapt(load_model(base, Quantization.NONE, cpu), config, base, cpu, 0)
    write_adapter(copy_adapter(adapted.model, adapted.starts), tmp_path / "adapter", None)
    check_config(base, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    # Which PEFT keeps in sets: in their order, equal runs would write other files.
    for names in (written["target_modules"], written["target_parameters"] or []):
        assert names == sorted(names)
