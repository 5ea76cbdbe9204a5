"""Which modules a run adapts, with which ranks, and how many parameters it trains."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lora_trainer.contract.config import Layers, LoraConfig, Variant
from lora_trainer.contract.fields import nearest
from lora_trainer.contract.fit.names import by_ending, in_preset, kinds, matches
from lora_trainer.contract.fit.shape import GUESSED, Linear, Shape


class AdapterError(ValueError):
    """An adapter that the model cannot have; the text is a sentence with field, value, rule and remedy."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`ranks` of each layer's linear modules, 0 where there is none; `whole` parameters that are trained whole, of
    which the file has those of tied embeddings `twice`.

    `head_trained` says that the output embedding is among these, so that all logits exist at once. `notes` are
    sentences for people.
    """

    ranks: tuple[tuple[int, ...], ...]
    tensors: tuple[int, ...]
    whole: int = 0
    twice: int = 0
    head_trained: bool = False
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> int:
        """All that is trained."""
        return sum(self.tensors) + self.whole

    @property
    def file_bytes(self) -> int:
        """Of `adapter_model.safetensors`, which is fp32; its header is not counted."""
        return 4 * (self.parameters + self.twice)

    def in_mlp(self, shape: Shape) -> int:
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


def plan_adapter(config: LoraConfig, shape: Shape) -> Adapter:
    """Resolve a run's names against a shape, as the trainer does against the model. Raises `AdapterError`.

    A name that the shape lacks is refused where the family is known, and else is a doubt.
    """
    _check_indices(config, shape)
    ranks = [[0] * len(layer.linear) for layer in shape.layers]
    tensors: list[int] = []
    useless: dict[int, dict[int, dict[str, None]]] = {}
    whole, head_trained, doubts = _whole(config, shape)
    chosen = set(_chosen(config, shape))
    for index, position, name, module in shape.modules():
        if name not in chosen or (config.layer_indices and index not in config.layer_indices):
            continue
        if any(matches(name, ending) for ending in config.modules_to_save):
            continue
        rank = by_ending(config.rank_pattern, name, config.rank)
        _check_rank(config, rank, module, useless)
        ranks[index][position] = rank
        tensors += [rank * module.inputs, rank * module.outputs]
        tensors += [module.outputs] if config.variant is Variant.DORA else []
    if config.target_parameters:
        doubts += (f"lora.targetParameters ({', '.join(config.target_parameters)}): their adapters are not counted",)
    if not tensors and not whole and not config.target_parameters:
        raise AdapterError(
            f"lora.layerIndices {list(config.layer_indices)} leaves no module to adapt; name other layers or modules"
        )
    return Adapter(
        ranks=tuple(map(tuple, ranks)),
        tensors=tuple(tensors),
        whole=whole,
        twice=shape.embeddings[1] if head_trained and shape.head[1] == 0 else 0,
        head_trained=head_trained,
        notes=tuple(_useless_rank(rank, kinds_by_side) for rank, kinds_by_side in useless.items()),
        doubts=doubts,
    )


def doubtful(shape: Shape, adapter: Adapter) -> Shape:
    """The shape with the adapter's doubts among its own."""
    if not adapter.doubts:
        return shape
    return replace(shape, doubts=(*shape.doubts, *adapter.doubts), spread=max(shape.spread, GUESSED))


def _check_indices(config: LoraConfig, shape: Shape) -> None:
    count = len(shape.layers)
    beyond = [index for index in config.layer_indices if index >= count]
    if beyond:
        raise AdapterError(
            f"lora.layerIndices holds {beyond[0]}: the model has the layers 0 to {count - 1}; name layers that it has"
        )


def _chosen(config: LoraConfig, shape: Shape) -> Iterator[str]:
    """Full names of what targets or preset select. Raises `AdapterError`."""
    names = {name: module for _, _, name, module in shape.modules()}
    if config.target_modules:
        chosen = _named("lora.targetModules", config.target_modules, names, shape)
    else:
        preset = config.layers or Layers.ALL_LINEAR
        chosen = {name for name, module in names.items() if in_preset(name, preset) and not module.reserved}
    excluded = _named("lora.excludeModules", config.exclude_modules, names, shape)
    left = [name for name in names if name in chosen and name not in excluded]
    if not left and not config.target_parameters:
        field = "targetModules" if config.target_modules else f"layers {(config.layers or Layers.ALL_LINEAR).value}"
        raise AdapterError(
            f"lora.{field} leaves no module to adapt: the model's linear modules are {', '.join(kinds(names))}; "
            "name some of them in lora.targetModules"
        )
    yield from left


def _named(field: str, endings: Sequence[str], names: Mapping[str, Linear], shape: Shape) -> set[str]:
    chosen: set[str] = set()
    for ending in endings:
        found = {name for name in names if matches(name, ending)}
        if not found and shape.spread < GUESSED:
            near = nearest(ending, kinds(names))
            hint = f"did you mean {near}?" if near else f"name one of {', '.join(kinds(names))}"
            raise AdapterError(f'{field} is "{ending[:60]}": must be a linear module of the model; {hint}')
        chosen |= found
    return chosen


def _check_rank(config: LoraConfig, rank: int, module: Linear, useless: dict[int, dict[int, dict[str, None]]]) -> None:
    """Note a rank above the smaller side of a module: rank to side to kinds of modules."""
    smaller = min(module.inputs, module.outputs)
    if rank <= smaller:
        return
    kind = module.name.rsplit(".", 1)[-1]
    if config.init.changes_base:
        raise AdapterError(
            f"lora.rank is {rank} with lora.init {config.init.value}: must be at most {smaller}, the smaller side of "
            f"{kind}; lower it, or give {kind} a rank of its own in lora.rankPattern"
        )
    useless.setdefault(rank, {}).setdefault(smaller, {})[kind] = None


def _useless_rank(rank: int, kinds_by_side: Mapping[int, Mapping[str, None]]) -> str:
    sides = sorted(kinds_by_side)
    where = "; ".join(f"{side} of {', '.join(kinds_by_side[side])}" for side in sides)
    most = f"rank {sides[0]}" if len(sides) == 1 else "a rank of that size"
    return f"lora.rank {rank} is above the smaller side of modules ({where}): it learns no more there than {most}"


def _whole(config: LoraConfig, shape: Shape) -> tuple[int, bool, tuple[str, ...]]:
    """Parameters of `lora.modulesToSave`, whether the output embedding is among them, and doubts."""
    sizes = {
        name: module.weights + (module.outputs if module.bias else 0)
        for _, _, name, module in shape.modules()
        if config.modules_to_save
    }
    sizes |= dict.fromkeys((shape.embeddings[0], shape.head[0]), shape.embeddings[1])
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
