"""Which modules a run adapts, by their names and with which ranks, and how many parameters it trains."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lora_trainer.plan.architecture import GUESSED, Linear, ModelArchitecture, Stack
from lora_trainer.spec.config import Layers, LoraConfig, Variant
from lora_trainer.spec.fields import nearest

_ATTENTION_PARENTS = ("attn", "attention")
_MLP_PARENTS = ("mlp", "feed_forward", "ffn", "feedforward", "moe")
_QUERY_VALUE_NAMES = ("q_proj", "v_proj", "query", "value", "query_key_value", "c_attn", "qkv_proj", "Wqkv")


def matches(full: str, ending: str) -> bool:
    """Whether a dotted name is `ending`, or ends with it as whole parts."""
    return full == ending or full.endswith("." + ending)


def by_ending(pattern: Mapping[str, int], name: str, default: int) -> int:
    """The value that `lora.rankPattern` or `lora.alphaPattern` gives a module: of the longest ending that fits."""
    fitting = [ending for ending in pattern if matches(name, ending)]
    return pattern[max(fitting, key=len)] if fitting else default


def in_preset(name: str, layers: Layers) -> bool:
    """Whether a linear module, by its full name, belongs to a preset of `lora.layers`."""
    *parents, last = name.lower().split(".")
    attention = any(word in parent for parent in parents for word in _ATTENTION_PARENTS)
    mlp = not attention and any(word in parent for parent in parents for word in _MLP_PARENTS)
    if layers is Layers.ALL_LINEAR:
        return True
    if layers is Layers.ATTENTION:
        return attention
    if layers is Layers.MLP:
        return mlp
    return last in {kind.lower() for kind in _QUERY_VALUE_NAMES}


def no_matrix(ending: str, having: Iterable[str]) -> str:
    """What is wrong with a name in `lora.targetParameters` that a model lacks, whose loose matrices end so."""
    return (
        f'lora.targetParameters names "{ending}": the model has no such matrix; outside of linear modules it has '
        f"{', '.join(sorted(having)) or 'none'}"
    )


def not_loose(ending: str, name: str) -> str:
    """What is wrong with one that means a matrix which is adapted otherwise, or none that PEFT adapts."""
    return (
        f'lora.targetParameters names "{ending}": {name} belongs to a linear module or to the embeddings; adapt it '
        "with lora.targetModules, or train embeddings with lora.modulesToSave"
    )


def of_no_adapter(field: str, ending: str, adapted: Iterable[str]) -> str:
    """What is wrong with a name in `lora.rankPattern` or `lora.alphaPattern` that fits none of the adapted modules."""
    having = ", ".join(kinds(adapted))
    return f'lora.{field} names "{ending[:60]}": no adapted module ends so; adapted are {having}'


def kinds(linear: Iterable[str]) -> tuple[str, ...]:
    """The distinct last parts of module names, in the order of the model."""
    return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))


def short_names(chosen: Sequence[str], every: Iterable[str]) -> tuple[str, ...]:
    """The shortest endings of module names that select exactly `chosen` of `every` module, as servers and people expect
    (`q_proj`).

    Where the same ending also belongs to a module that was not chosen, the parent's name goes along (`attn.c_proj`),
    and in the end the full name.
    """
    taken = {ending for other in set(every).difference(chosen) for ending in _endings(other)}
    return tuple(dict.fromkeys(next((e for e in _endings(full) if e not in taken), full) for full in chosen))


def _endings(full: str) -> list[str]:
    """What `matches` a name, the shortest first."""
    parts = full.split(".")
    return [".".join(parts[-size:]) for size in range(1, len(parts) + 1)]


class AdapterError(ValueError):
    """An adapter that the model cannot have; the text is a sentence with field, value, rule and remedy."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`ranks` of each layer's linear modules and `stacks` of its stacks, 0 where there is none; `whole` parameters that
    are trained whole, of which the file has those of tied embeddings `twice`.

    `head_trained` says that the output embedding is among these, so that all logits exist at once.
    """

    ranks: tuple[tuple[int, ...], ...]
    stacks: tuple[tuple[int, ...], ...]
    tensors: tuple[int, ...]
    whole: int = 0
    twice: int = 0
    head_trained: bool = False
    doubts: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> int:
        """All that is trained."""
        return sum(self.tensors) + self.whole

    @property
    def file_bytes(self) -> int:
        """Of `adapter_model.safetensors`, which is fp32; its header is not counted."""
        return 4 * (self.parameters + self.twice)

    def in_mlp(self, shape: ModelArchitecture) -> int:
        """Values of A and B in MLPs."""
        return sum(
            rank * (module.inputs + module.outputs)
            for layer, ranks in zip(shape.layers, self.ranks, strict=True)
            for module, rank in zip(layer.linear, ranks, strict=True)
            if module.in_mlp
        )

    @cached_property
    def modules(self) -> int:
        """How many linear modules are adapted."""
        return sum(1 for ranks in self.ranks for rank in ranks if rank)


def plan_adapter(config: LoraConfig, shape: ModelArchitecture) -> Adapter:
    """Resolve a run's names against a shape, as the trainer does against the model. Raises `AdapterError`.

    A name that the shape lacks is refused where the family is known, and else is a doubt.
    """
    _check_indices(config, shape)
    ranks = [[0] * len(layer.linear) for layer in shape.layers]
    tensors: list[int] = []
    adapted: list[str] = []
    whole, head_trained, doubts = _whole(config, shape)
    chosen = set(_chosen(config, shape))
    for index, position, name, module in shape.modules():
        if name not in chosen or (config.layer_indices and index not in config.layer_indices):
            continue
        if any(matches(name, ending) for ending in config.modules_to_save):
            continue
        adapted.append(name)
        rank = by_ending(config.rank_pattern, name, config.rank)
        _check_rank(config, rank, module)
        ranks[index][position] = rank
        tensors += [rank * module.inputs, rank * module.outputs]
        tensors += [module.outputs] if config.variant is Variant.DORA else []
    stacks, of_stacks, unsure = _stacks(config, shape, ranks, adapted)
    if not tensors and not of_stacks and not whole and not unsure:
        raise AdapterError(
            f"lora.layerIndices {list(config.layer_indices)} leaves no module to adapt; name other layers or modules"
        )
    if shape.spread < GUESSED and not unsure:
        _check_patterns(config, adapted)
    return Adapter(
        ranks=tuple(map(tuple, ranks)),
        stacks=stacks,
        tensors=(*tensors, *of_stacks),
        whole=whole,
        twice=shape.embeddings[1] if head_trained and shape.head[1] == 0 else 0,
        head_trained=head_trained,
        doubts=(*doubts, *unsure),
    )


def adapted_stacks(shape: ModelArchitecture, adapter: Adapter) -> Iterator[Stack]:
    """Of all layers, with their ranks."""
    for layer, ranks in zip(shape.layers, adapter.stacks, strict=True):
        yield from (replace(stack, rank=rank) for stack, rank in zip(layer.stacks, ranks, strict=True) if rank)


def doubtful(shape: ModelArchitecture, adapter: Adapter) -> ModelArchitecture:
    """The shape with the adapter's doubts among its own."""
    if not adapter.doubts:
        return shape
    return replace(shape, doubts=(*shape.doubts, *adapter.doubts), spread=max(shape.spread, GUESSED))


def _check_indices(config: LoraConfig, shape: ModelArchitecture) -> None:
    count = len(shape.layers)
    beyond = [index for index in config.layer_indices if index >= count]
    if beyond:
        raise AdapterError(
            f"lora.layerIndices holds {beyond[0]}: the model has the layers 0 to {count - 1}; name layers that it has"
        )


def _chosen(config: LoraConfig, shape: ModelArchitecture) -> Iterator[str]:
    """Full names of what targets or preset select. Raises `AdapterError`."""
    names = {name: module for _, _, name, module in shape.modules()}
    if config.target_modules:
        chosen = _named("lora.targetModules", config.target_modules, names, shape)
    else:
        preset = config.layers or Layers.ALL_LINEAR
        chosen = {name for name, module in names.items() if in_preset(name, preset) and not module.reserved}
    skipped = (shape.embeddings[0], shape.head[0], *(name.rpartition(".")[0] for _, _, name, _ in shape.stacks()))
    excluded = _named("lora.excludeModules", config.exclude_modules, names, shape, skipped)
    left = [name for name in names if name in chosen and name not in excluded]
    if not left and (shape.spread < GUESSED or not config.target_parameters):
        field = "targetModules" if config.target_modules else f"layers {(config.layers or Layers.ALL_LINEAR).value}"
        raise AdapterError(
            f"lora.{field} leaves no module to adapt: the model's linear modules are {', '.join(kinds(names))}; "
            "name some of them in lora.targetModules"
        )
    yield from left


def _stacks(
    config: LoraConfig, shape: ModelArchitecture, of_modules: Sequence[Sequence[int]], names: list[str]
) -> tuple[tuple[tuple[int, ...], ...], list[int], tuple[str, ...]]:
    """Ranks of each layer's stacks, sizes of their factors, and doubts; adds to `names`. Raises `AdapterError`."""
    ranks = [[0] * len(layer.stacks) for layer in shape.layers]
    tensors: list[int] = []
    doubts: list[str] = []
    for name, place in _matrices(config, shape, of_modules, doubts).items():
        index, position, stack = place
        if config.layer_indices and index not in config.layer_indices:
            continue
        names.append(name)
        adapted = replace(stack, rank=by_ending(config.rank_pattern, name, config.rank))
        tensors += adapted.factors
        if position < len(ranks[index]):
            ranks[index][position] = adapted.rank
    return tuple(map(tuple, ranks)), tensors, tuple(doubts)


def _check_patterns(config: LoraConfig, adapted: Sequence[str]) -> None:
    """A rank or an alpha for nothing is a slip of the pen. Raises `AdapterError`."""
    for field, pattern in (("rankPattern", config.rank_pattern), ("alphaPattern", config.alpha_pattern)):
        for ending in pattern:
            if not any(matches(name, ending) for name in adapted):
                raise AdapterError(of_no_adapter(field, ending, adapted))


def _matrices(
    config: LoraConfig, shape: ModelArchitecture, of_modules: Sequence[Sequence[int]], doubts: list[str]
) -> dict[str, tuple[int, int, Stack]]:
    """What `lora.targetParameters` name: number of the layer, number in it, stack. The weight of a linear module that
    has no adapter is one, too, behind the layer's own."""
    chosen: dict[str, tuple[int, int, Stack]] = {}
    if not config.target_parameters:
        return chosen
    fixed = [f"{name}.weight" for name, _ in (shape.embeddings, shape.head)]
    stacks = {name: (index, position, stack) for index, position, name, stack in shape.stacks()}
    weights: dict[str, tuple[int, int, Stack]] = {}
    for index, position, name, module in shape.modules():
        if of_modules[index][position]:
            fixed.append(f"{name}.weight")
        else:
            one = Stack(name=f"{module.name}.weight", inputs=module.inputs, outputs=module.outputs)
            weights[f"{name}.weight"] = index, len(shape.layers[index].stacks), one
    for ending in config.target_parameters:
        adapted = next((name for name in fixed if matches(name, ending)), None)
        if adapted is not None:
            raise AdapterError(not_loose(ending, adapted))
        found = {name: place for name, place in (stacks | weights).items() if matches(name, ending)}
        if not found and shape.spread < GUESSED:
            raise AdapterError(no_matrix(ending, {".".join(name.split(".")[-2:]) for name in stacks}))
        if not found:
            doubts.append(f"lora.targetParameters ({ending[:60]}): its adapters are not counted")
        elif found.keys() - stacks.keys():
            doubts.append(f"lora.targetParameters ({ending[:60]}): copies of linear modules' weights are not counted")
        chosen |= found
    return chosen


def _named(
    field: str,
    endings: Sequence[str],
    names: Mapping[str, Linear],
    shape: ModelArchitecture,
    others: Sequence[str] = (),
) -> set[str]:
    chosen: set[str] = set()
    for ending in endings:
        found = {name for name in names if matches(name, ending)}
        if not found and shape.spread < GUESSED and not any(matches(name, ending) for name in others):
            near = nearest(ending, kinds(names))
            hint = f"did you mean {near}?" if near else f"name one of {', '.join(kinds(names))}"
            raise AdapterError(f'{field} is "{ending[:60]}": must be a linear module of the model; {hint}')
        chosen |= found
    return chosen


def _check_rank(config: LoraConfig, rank: int, module: Linear) -> None:
    """Refuse a rank above the smaller side of a module that starts from the base's own directions."""
    smaller = min(module.inputs, module.outputs)
    if rank > smaller and config.init.changes_base:
        kind = module.name.rsplit(".", 1)[-1]
        raise AdapterError(
            f"lora.rank is {rank} with lora.init {config.init.value}: must be at most {smaller}, the smaller side of "
            f"{kind}; lower it, or give {kind} a rank of its own in lora.rankPattern"
        )


def _whole(config: LoraConfig, shape: ModelArchitecture) -> tuple[int, bool, tuple[str, ...]]:
    """Parameters of `lora.modulesToSave`, whether the output embedding is among them, and doubts."""
    sizes = {
        name: module.weights + (module.outputs if module.bias else 0)
        for _, _, name, module in shape.modules()
        if config.modules_to_save
    }
    matrix = shape.embeddings[1]
    sizes |= {shape.embeddings[0]: matrix, shape.head[0]: max(matrix, shape.head[1])}
    found = {ending: [name for name in sizes if matches(name, ending)] for ending in config.modules_to_save}
    doubts = [
        f"lora.modulesToSave ({ending[:60]}): its parameters are not counted" for ending in found if not found[ending]
    ]
    named = {name for names in found.values() for name in names}
    head_trained = shape.head[0] in named
    if shape.head[1] == 0 and shape.embeddings[0] in named:
        # Tied they are one matrix, which is trained whatever it is called.
        head_trained = True
        named.discard(shape.head[0])
    return sum(sizes[name] for name in named), head_trained, tuple(doubts)
