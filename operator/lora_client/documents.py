"""Manifests as people write them: one LoRAFineTune of a YAML file, or of standard input."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_client.errors import ClientError
from lora_client.views.words import FIELDS
from lora_operator.model.wording import printable
from lora_trainer.errors import ConfigError
from lora_trainer.manifest_file import MOST_CHARACTERS, TOP_FIELDS, one_resource, read_documents
from lora_trainer.spec.manifest import KIND


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The resource of a file; `others` names what else is in it, as Kind/name."""

    resource: Mapping[str, Any]
    others: tuple[str, ...]


def read_file(path: str, wanted: str = "the YAML file that kubectl apply takes") -> str:
    """A file's text, that of standard input for `-`. Raises `ClientError`, which names what is `wanted`."""
    try:
        if path == "-":
            return sys.stdin.read(MOST_CHARACTERS + 1)
        with Path(path).open(encoding="utf-8") as stream:
            return stream.read(MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise ClientError(f"{path} is not text in UTF-8: name {wanted}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a file name"
        raise ClientError(f"{path} cannot be read ({why}): name {wanted}") from error


def load_document(path: str) -> Document:
    """The one LoRAFineTune of a file. Raises `ClientError`."""
    try:
        documents = read_documents(read_file(path), path)
        if len(documents) == 1 and _is_of_another_tool(documents[0]):
            raise ClientError(
                f"{path} is the configuration of another tool and no {KIND}: "
                f"lora convert {shlex.quote(path)} -f NEW.yaml makes one from it"
            )
        resource = one_resource(documents, path)
    except ConfigError as error:
        raise ClientError(str(error)) from error
    others = [d for d in documents if d is not resource and isinstance(d, Mapping)]
    return Document(resource=resource, others=tuple(_title(other) for other in others))


def _is_of_another_tool(document: object) -> bool:
    return isinstance(document, dict) and bool(FIELDS.keys() & document.keys()) and not TOP_FIELDS & document.keys()


def _title(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return printable(f"{document.get('kind', KIND)}/{name}")
