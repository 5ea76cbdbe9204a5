"""The adapter that was asked for as PEFT's configuration, checked against the names and shapes of the model.

Nothing here reads a weight: the same checks run on a model without any, before the real one is loaded.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from lora_trainer.errors import ConfigError, one_sentence
from lora_trainer.model.experts import left_alone, reserved_names
from lora_trainer.model.linear import language_model
from lora_trainer.model.targets import choose_targets, inside, rank_and_scale
from lora_trainer.plan.adapter import by_ending, kinds, matches, no_matrix, not_loose, of_no_adapter, short_names
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.spec.config import Init, LoraConfig, Quantization, Scaling, Variant

ADAPTER = "default"
"""The name of the one adapter of a model, which PEFT asks for; no file has it."""
_INITS: Mapping[Init, bool | str] = {
    Init.DEFAULT: True,
    Init.GAUSSIAN: "gaussian",
    # Randomized singular values, 16 passes: the full decomposition of an 8B model's weights takes a quarter of an hour.
    Init.PISSA: "pissa_niter_16",
    Init.OLORA: "olora",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained, by full names: linear `modules`, `parameters` outside of them, modules `saved` whole.

    `names` are the shortest endings that select `modules`, `settings` the options of PEFT, `init` its start values, and
    `left_alone` what the adapter leaves alone.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    saved: tuple[str, ...]
    settings: Mapping[str, Any]
    init: bool | str
    left_alone: LeftAlone


def plan_adapter(
    config: LoraConfig, model: Any, linear: Mapping[str, tuple[int, int]], quantization: Quantization
) -> Plan:
    """Resolve names against the model. Raises `ConfigError` for those that it lacks, listing what it has."""
    part = language_model(model)
    saved = _saved(config, model, linear, quantization)
    layers = _Layers.of(model)
    layers.check(config.layer_indices)
    # A preset passes over what PEFT cannot adapt; who names it is refused.
    reserved = frozenset() if config.target_modules else reserved_names(model)
    passed_over = [name for name in linear if name.rpartition(".")[2] in reserved]
    taken = {name: size for name, size in linear.items() if name not in passed_over}
    wanted = choose_targets(config, taken, _with_weights(model))
    modules = tuple(
        name
        for name in wanted
        if layers.keep(name, config.layer_indices) and not any(inside(name, module) for module in saved)
    )
    parameters = _parameters(config, model, layers, modules)
    if not modules and not parameters:
        raise ConfigError(
            f"lora.layerIndices {list(config.layer_indices)} and lora.modulesToSave leave no module to adapt; "
            "name other layers or modules"
        )
    adapted = (*modules, *parameters)
    # A list of linear modules and the list of layers both count their modules: PEFT would take a layer for one of them.
    names = _names_left(short_names(wanted, [name for name, _ in model.named_modules() if inside(name, part)]), modules)
    _check_start(config, model, linear, modules)
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "target_modules": list(names),
        # Text trains nothing else: the gradients of what sees are zero.
        "exclude_modules": rf"(?!{re.escape(part)}\.).*" if part else None,
        "use_rslora": config.scaling is Scaling.RANK_STABILIZED,
        "use_dora": config.variant is Variant.DORA,
        "rank_pattern": _pattern("rankPattern", config.rank_pattern, adapted),
        "alpha_pattern": _pattern("alphaPattern", config.alpha_pattern, adapted),
        "layers_to_transform": list(config.layer_indices) or None,
        "layers_pattern": [layers.short_name] if config.layer_indices else None,
        "modules_to_save": list(saved) or None,
        "ensure_weight_tying": _embeddings_tied(model) and any(name in _embeddings(model) for name in saved),
        "target_parameters": list(_parameter_names(config, parameters)) or None,
        "fan_in_fan_out": any(_is_transposed(model, name) for name in modules),
    }
    return Plan(
        names=names,
        modules=modules,
        parameters=parameters,
        saved=tuple(_with_tied(model, saved)),
        settings=settings,
        init=_INITS[config.init],
        left_alone=left_alone(model, parameters, (n for n in passed_over if f"{n}.weight" not in parameters)),
    )


def put_on(model: Any, plan: Plan, *, empty: bool = False) -> Any:
    """PEFT's model with a fresh adapter: B is zero. `empty` allocates nothing, for a model without weights.

    The start values of PiSSA and OLoRA come afterwards (`convert.take_directions`): PEFT would round them to the type
    of the base weights right after it computed these with the unrounded ones.
    """
    from peft import LoraConfig as PeftLoraConfig  # noqa: PLC0415 - PEFT takes seconds to import
    from peft import get_peft_model  # noqa: PLC0415

    settings: Any = PeftLoraConfig
    init = "gaussian" if plan.init == "gaussian" else True
    with _expected_warnings():
        configuration = settings(**plan.settings, init_lora_weights=init)
        return get_peft_model(model, configuration, adapter_name=ADAPTER, low_cpu_mem_usage=empty)


def check_on(model: Any, plan: Plan) -> None:
    """Try the plan on a model without weights: what PEFT adapts must be what was planned. Raises `ConfigError`."""
    try:
        found = adapted_names(put_on(model, plan, empty=True))
    except Exception as error:  # what PEFT raises on a configuration is not bounded
        raise ConfigError(
            f"lora: PEFT refuses this adapter for the model ({one_sentence(error).partition('. ')[0][:300]}); name the "
            "modules to adapt in lora.targetModules, or those to leave alone in lora.excludeModules"
        ) from error
    wanted = {*plan.modules, *plan.parameters, *plan.saved}
    if found != wanted:
        # PEFT reads names that old files of a mixture had for its experts as these, whatever bears the name today.
        names = ", ".join(kinds(sorted(wanted - found))) or ", ".join(sorted(found - wanted)[:3])
        raise ConfigError(
            f"lora: PEFT takes {names} of a model of the kind {model.config.model_type!r} for its experts; put these "
            "names into lora.excludeModules, and the experts' into lora.targetParameters"
        )


def check_apart(model: nn.Module, modules: Iterable[str], wanted: str) -> None:
    """Layers that share a weight may have adapters of their own beside it, but not in it, as `wanted` would. Raises
    `ConfigError`."""
    owners: dict[int, str] = {}
    for name in modules:
        other = owners.setdefault(id(model.get_submodule(name).weight), name)
        if other != name:
            raise ConfigError(
                f"{wanted}: {other} and {name} share one weight, which cannot take the adapters of both; leave it at "
                "its default, or name other modules in lora.targetModules"
            )


def adapted_names(model: Any) -> set[str]:
    """Full names of what a PEFT model trains: linear modules, parameters, modules saved whole."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper  # noqa: PLC0415 - as above
    from peft.utils import ModulesToSaveWrapper  # noqa: PLC0415

    found: set[str] = set()
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, ParamWrapper):
            found.add(f"{name.replace('.base_layer', '')}.{module.parameter_name}")
        elif isinstance(module, LoraLayer | ModulesToSaveWrapper):
            found.add(name)
    return found


@contextmanager
def _expected_warnings() -> Iterator[None]:
    """PEFT warns of what was checked here, patterns that fit parameters only, and asks Transformers for an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """The decoder layers of a model: the name of their list, empty where there is none, and how many they are."""

    name: str
    count: int

    @classmethod
    def of(cls, model: Any) -> "_Layers":
        count, part = getattr(model.config.get_text_config(), "num_hidden_layers", None), language_model(model)
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == count and inside(name, part):
                return cls(name=name, count=len(module))
        return cls(name="", count=0)

    @property
    def short_name(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    def check(self, indices: Sequence[int]) -> None:
        beyond = [index for index in indices if index >= self.count]
        if beyond:
            has = f"has the layers 0 to {self.count - 1}" if self.count else "has no list of decoder layers"
            raise ConfigError(f"lora.layerIndices holds {beyond[0]}: the model {has}; name layers that it has")

    def keep(self, full: str, indices: Sequence[int]) -> bool:
        if not indices:
            return True
        number = full.removeprefix(self.name + ".").partition(".")[0] if full.startswith(self.name + ".") else ""
        return number.isdigit() and int(number) in indices


def _with_weights(model: nn.Module) -> Iterator[str]:
    """Modules that hold a matrix themselves: linear ones, routers, experts, embeddings, those of a vision tower."""
    for name, module in model.named_modules():
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
            yield name


def _names_left(names: Sequence[str], modules: Sequence[str]) -> tuple[str, ...]:
    return tuple(ending for ending in names if any(matches(name, ending) for name in modules))


def _pattern(field: str, pattern: Mapping[str, int], adapted: Sequence[str]) -> dict[str, int]:
    """PEFT's form: regular expressions of which the first that fits counts, in an order that no file keeps. Where
    several endings fit a module, full names stand for them."""
    for ending in pattern:
        if not any(matches(name, ending) for name in adapted):
            raise ConfigError(of_no_adapter(field, ending, adapted))
    fitting = {name: [ending for ending in pattern if matches(name, ending)] for name in adapted}
    if all(len(endings) <= 1 for endings in fitting.values()):
        return {re.escape(ending): value for ending, value in pattern.items()}
    return {re.escape(name): by_ending(pattern, name, 0) for name, endings in fitting.items() if endings}


def _saved(
    config: LoraConfig, model: Any, linear: Mapping[str, tuple[int, int]], quantization: Quantization
) -> tuple[str, ...]:
    part, embeddings = language_model(model), _embeddings(model)
    modules = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and (inside(name, part) or name in embeddings)
    }
    chosen: list[str] = []
    for ending in config.modules_to_save:
        found = [
            name for name in modules if matches(name, ending) and next(modules[name].parameters(), None) is not None
        ]
        if not found:
            having = kinds(name for name, module in modules.items() if next(module.parameters(), None) is not None)
            raise ConfigError(
                f'lora.modulesToSave names "{ending}": the model has no such module; it has '
                f"{', '.join(kind for kind in having if not kind.isdigit())}"
            )
        _check_whole(ending, [modules[name] for name in found])
        if quantization is not Quantization.NONE and any(inside(name, module) for name in linear for module in found):
            raise ConfigError(
                f'lora.modulesToSave names "{ending}": its weights are stored with quantization '
                f"{quantization.value}, so that they cannot be trained whole; adapt it, or set quantization: None"
            )
        chosen += found
    return tuple(dict.fromkeys(chosen))


def _check_whole(ending: str, modules: Iterable[nn.Module]) -> None:
    if any(isinstance(module, nn.ModuleList | nn.ModuleDict) for module in modules):
        raise ConfigError(f'lora.modulesToSave names "{ending}": this is a list of modules; name the modules in it')


def _embeddings(model: Any) -> tuple[str, ...]:
    """Names of the input and the output embeddings."""
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())
    return tuple(name for name, module in model.named_modules(remove_duplicate=False) if module in wanted)


def _embeddings_tied(model: Any) -> bool:
    """As it is: the configurations of a model and of its language model may differ in what they say of it."""
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    return getattr(head, "weight", None) is getattr(source, "weight", ...)


def _with_tied(model: Any, saved: Sequence[str]) -> Iterator[str]:
    """Tied embeddings are one matrix: who trains one of them trains both."""
    embeddings = _embeddings(model)
    together = _embeddings_tied(model) and any(name in embeddings for name in saved)
    yield from dict.fromkeys((*saved, *embeddings) if together else saved)


def _parameters(config: LoraConfig, model: Any, layers: _Layers, modules: Sequence[str]) -> tuple[str, ...]:
    part = language_model(model)
    having = {n: p for n, p in model.named_parameters() if p.dim() in (2, 3) and inside(n, part)}
    fixed = {*modules, *_embeddings(model)}
    chosen: list[str] = []
    for ending in config.target_parameters:
        found = [name for name in having if matches(name, ending)]
        if not found:
            raise ConfigError(no_matrix(ending, _loose(model)))
        for name in found:
            if name.rpartition(".")[0] in fixed:
                raise ConfigError(not_loose(ending, name))
        chosen += [name for name in found if layers.keep(name, config.layer_indices)]
    return tuple(dict.fromkeys(chosen))


def _parameter_names(config: LoraConfig, parameters: Sequence[str]) -> Sequence[str]:
    """PEFT restricts modules to some layers, but no parameters: there their full names do."""
    return parameters if config.layer_indices else config.target_parameters


def _loose(model: Any) -> tuple[str, ...]:
    """Endings of matrices that belong to no linear module: `experts.gate_up_proj`."""
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - Transformers takes seconds to import

    plain = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    part = language_model(model)
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        if inside(name, part) and not isinstance(module, plain):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.dim() in (2, 3):
                    found[f"{name.rsplit('.', 1)[-1]}.{own}"] = None
    return tuple(found)


def _is_transposed(model: nn.Module, name: str) -> bool:
    return type(model.get_submodule(name)).__name__ == "Conv1D"


def _check_start(
    config: LoraConfig, model: nn.Module, linear: Mapping[str, tuple[int, int]], modules: Sequence[str]
) -> None:
    """PiSSA and OLoRA take `rank` directions out of a weight: it must have as many. Raises `ConfigError`."""
    if not config.init.changes_base:
        return
    check_apart(model, modules, f"lora.init is {config.init.value}")
    for name in modules:
        rank, _ = rank_and_scale(config, name)
        if rank > min(linear[name]):
            raise ConfigError(
                f"lora.init is {config.init.value} with rank {rank}: {name} has only {min(linear[name])} directions to "
                "take out; lower lora.rank, or give the module a rank of its own in lora.rankPattern"
            )
        if config.init is Init.OLORA and _is_transposed(model, name):
            raise ConfigError(
                f"lora.init is OLoRA: {name} keeps its weight transposed, which PEFT's OLoRA does not know; use PiSSA"
            )
