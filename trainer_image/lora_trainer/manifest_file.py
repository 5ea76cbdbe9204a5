"""YAML files as a person writes them: what kubectl refuses is refused, each mistake in one sentence with its line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from lora_trainer.errors import ConfigError
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.fields import nearest
from lora_trainer.spec.manifest import API_VERSION, KIND, ManifestError, RunOptions, train_config

MOST_CHARACTERS = 3 * 2**20
"""What the API server takes of one request; a manifest has a few hundred."""
TOP_FIELDS = frozenset(("apiVersion", "kind", "metadata", "spec"))
"""Of a manifest."""
_MERGE, _TIMESTAMP, _INTEGER = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "timestamp", "int"))
_FLOAT = "tag:yaml.org,2002:float"
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
"""What kubectl reads as one, and PyYAML as text where the exponent lacks a point or a sign: 1e-4."""
_LONGEST_NUMBER_BITS = 128
_LONG_NUMBER = "the number has more digits than any field takes"
_ALIASES = f"the document has more than {MOST_CHARACTERS:,} characters with its aliases written out: use fewer"


def load_manifest(text: str, name: str, uid: str) -> TrainConfig:
    """The run of the one LoRAFineTune in a YAML file, which may hold other documents. Raises `ConfigError`.

    Without a cluster a GPU cannot be given or withheld: the run takes one if there is one, else the CPU.
    """
    manifest = one_resource(read_documents(text, name), name)
    try:
        return train_config(manifest, RunOptions(uid=uid, allow_cpu=True, strict=True))
    except ManifestError as error:
        raise ConfigError(f"{name}: {error}") from error


def read_documents(text: str, name: str) -> tuple[Any, ...]:
    """The documents of a YAML file that hold something; `name` is the file's. Raises `ConfigError`."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{name} has {len(text):,} characters: a manifest has at most {MOST_CHARACTERS:,}")
    try:
        documents = yaml.load_all(text, _Loader)
        return tuple(document for document in documents if document is not None)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{name}{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name} cannot be read: its lists and objects are nested too deeply") from error


def one_resource(documents: Sequence[Any], name: str) -> Mapping[str, Any]:
    """The one LoRAFineTune among the documents. Raises `ConfigError`.

    A file of one object whose kind is missing or misspelt is taken for it, so that what is wrong with it can be said
    field by field; anything else may hold secrets, and is neither quoted nor sent.
    """
    objects = [document for document in documents if isinstance(document, dict)]
    tunes = [document for document in objects if document.get("kind") == KIND]
    if len(tunes) == 1:
        return tunes[0]
    must = f"must hold one {KIND} ({API_VERSION})"
    if len(tunes) > 1:
        raise ConfigError(
            f"{name} holds {len(tunes)} resources of kind {KIND}: {must}; put each into a file of its own"
        )
    kinds = [str(document["kind"]) for document in objects if document.get("kind")]
    near = nearest(KIND, kinds)
    if len(objects) == len(documents) == 1 and (near or (not kinds and TOP_FIELDS & objects[0].keys())):
        return objects[0]
    hint = f'; its kind "{near}" is written {KIND}' if near else "; lora init writes one"
    raise ConfigError(f"{name} holds {_held(documents, kinds)}: {must}{hint}")


def _held(documents: Sequence[Any], kinds: Sequence[str]) -> str:
    if not kinds:
        return "no resource" if documents else "nothing"
    return f"{'a resource' if len(kinds) == 1 else 'resources'} of kind {', '.join(kinds)[:200]}"


class AliasesError(yaml.MarkedYAMLError):
    """A few hundred characters whose aliases would take the memory."""


class BoundedLoader(yaml.SafeLoader):
    """Refuses documents that are too large with their aliases written out, as whatever prints or sends them does."""

    def compose_document(self) -> yaml.Node | None:
        """See `yaml.composer.Composer`."""
        node = super().compose_document()
        if node is not None and _written_out(node, {}) > MOST_CHARACTERS:
            raise AliasesError(problem=_ALIASES, problem_mark=node.start_mark)
        return node


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """About how many characters, each alias written out; more than any document has for one within itself."""
    if id(node) not in known:
        known[id(node)] = MOST_CHARACTERS + 1
        if isinstance(node, yaml.ScalarNode):
            inner = len(node.value)
        elif isinstance(node, yaml.MappingNode):
            inner = sum(_written_out(key, known) + _written_out(value, known) for key, value in node.value)
        else:
            inner = sum(_written_out(entry, known) for entry in node.value)
        known[id(node)] = 1 + inner
    return known[id(node)]


class _Loader(BoundedLoader):
    """Refuses keys that are repeated and numbers that no field can take. Dates and numbers are what they are for
    kubectl."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the class above
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """See `yaml.composer.Composer`; here, since building the object looks at merged keys too."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Mark] = {}
        for key in _scalars(node):
            mark = first.setdefault((key.tag, key.value), key.start_mark)
            if mark is not key.start_mark:
                problem = f"the field {key.value[:80]} is repeated, first in line {mark.line + 1}: remove one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See `yaml.constructor.BaseConstructor`."""
        try:
            value = super().construct_object(node, deep)
        except ValueError as error:
            problem = _LONG_NUMBER if node.tag == _INTEGER else str(error)
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error
        if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER_BITS:
            raise yaml.MarkedYAMLError(problem=_LONG_NUMBER, problem_mark=node.start_mark)
        return value


# Behind the others, so that whole numbers stay whole.
_Loader.add_implicit_resolver(_FLOAT, _NUMBER, list("-+.0123456789"))


def _scalars(node: yaml.MappingNode) -> Iterator[yaml.ScalarNode]:
    return (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE)
