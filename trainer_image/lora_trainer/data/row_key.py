"""What encoded rows depend on, as one digest: rows that were kept under it are those that encoding would give."""

import dataclasses
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from lora_trainer.contract import codec
from lora_trainer.contract.summary import DatasetStats
from lora_trainer.data.survey import Mask, Samples
from lora_trainer.data.tokens import Encoder

_LIBRARIES = ("transformers", "tokenizers", "jinja2")


def row_key(samples: Samples, encoder: Encoder, model_revision: str) -> str:
    """Digest (64 hexadecimal digits) over all that decides which examples are trained and evaluated, and their counts.

    `model_revision` pins the files of the tokenizer. Seed and share of the held-out rows are in it as the rows that
    were chosen.
    """
    document = {
        "counted": sorted(field.name for field in dataclasses.fields(DatasetStats)),
        "data": [samples.fingerprint, [[name for name, _ in part.files] for part in samples.parts]],
        "layout": codec.encode(samples.layout),
        "chosen": [[_digest(part.training), _digest(part.held_out)] for part in samples.parts],
        "counts": [samples.skipped, samples.duplicates],
        "model": model_revision,
        "encoder": encoder.facts(),
        "libraries": [_version(name) for name in _LIBRARIES],
    }
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _digest(mask: Mask) -> str:
    return hashlib.sha256(len(mask).to_bytes(8, "little") + np.packbits(mask).tobytes()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
