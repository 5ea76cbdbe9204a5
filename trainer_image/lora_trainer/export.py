"""The trained adapter to a folder in PEFT's format, with a model card, and the manifest as the last file."""

import importlib.metadata
import json
import platform
from pathlib import Path

from lora_trainer.artifact import MANIFEST, Manifest, Measured, file_entries, loadable, sync_files, sync_folder
from lora_trainer.base import Base
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.release import RELEASE
from lora_trainer.contract.summary import DatasetStats, ResolvedRun
from lora_trainer.convert import save_adapter
from lora_trainer.errors import StorageError, storage_error
from lora_trainer.model import Adapted

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def write_adapter(adapted: Adapted, folder: Path, template: str | None) -> None:
    """Write weights and configuration; `template` is the chat template where the base model has none of its own."""
    try:
        save_adapter(adapted.model, adapted.starts, folder)
        _sort_config(folder / "adapter_config.json")
        # safetensors writes for the owner alone; who serves an adapter is rarely who trained it.
        (folder / "adapter_model.safetensors").chmod(0o644)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, "the adapter") from error
    except Exception as error:
        # safetensors reports a full disk as an error of its own kind, with the system's text inside
        if "No space left" in str(error):
            raise storage_error(OSError(28, "No space left on device"), "the adapter") from error
        raise


def _sort_config(path: Path) -> None:
    """PEFT keeps module names in a set: sorted, equal runs write equal files."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_manifest(
    folder: Path, *, base: Base, config: TrainConfig, resolved: ResolvedRun, dataset: DatasetStats, measured: Measured
) -> Manifest:
    """Write the model card, then the manifest over all files, everything forced to the disk. Raises `StorageError`."""
    try:
        (folder / "README.md").write_text(model_card(base, config, measured), encoding="utf-8")
        files = file_entries(folder)
        sync_files(folder / entry.path for entry in files)
        manifest = Manifest(
            base_model=base.name,
            base_revision=base.revision,
            config=config,
            resolved=resolved,
            dataset=dataset,
            measured=measured,
            versions=_versions(),
            files=files,
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        sync_files((folder / MANIFEST,))
        sync_folder(folder)
    except OSError as error:
        raise storage_error(error, "the adapter") from error
    if not any(entry.path == "adapter_model.safetensors" for entry in files):
        raise StorageError("the adapter has no adapter_model.safetensors after it was written")
    return manifest


def _versions() -> dict[str, str]:
    libraries = {library: importlib.metadata.version(library) for library in _LIBRARIES}
    return {"lora-finetune-operator": RELEASE, "python": platform.python_version(), **libraries}


def model_card(base: Base, config: TrainConfig, measured: Measured) -> str:
    """A short model card: what it is, how good, how to load it."""
    rows = "held-out rows" if measured.held_out else "rows of the training data (none were held out)"
    source = loadable(base.name, base.revision)
    return f"""---
library_name: peft
base_model: {base.name}
tags: [lora]
---

# {config.run.name}

A LoRA adapter of rank {config.lora.rank} (alpha {config.lora.alpha}) for `{base.name}` at `{base.revision}`.

| | loss per token on {rows} |
|---|---|
| base model | {measured.eval_loss_before:.4f} ± {measured.eval_loss_before_standard_error:.4f} |
| with this adapter | {measured.eval_loss_after:.4f} ± {measured.eval_loss_after_standard_error:.4f} |

Trained for {measured.steps} steps on `{config.dataset.uri}`. `manifest.json` holds the complete configuration, all
measurements and the sha256 of each file.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({source})
model = PeftModel.from_pretrained(base, "path/of/this/folder")
```
"""
