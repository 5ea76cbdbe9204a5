"""What is found out about a run before a GPU is asked for: model, rows, output, plan. Without PyTorch."""

import logging
from dataclasses import dataclass
from functools import partial

from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.row_facts import count_rows
from lora_trainer.data.survey import load_index
from lora_trainer.data.tokenizer import check_tokenizer
from lora_trainer.data.vocabulary import check_token
from lora_trainer.distributed.activity import begun
from lora_trainer.errors import ConfigError, DoesNotFitError, one_sentence
from lora_trainer.plan.adapter import Adapter, AdapterError, plan_adapter, short_names
from lora_trainer.plan.architecture import GUESSED, ArchitectureError, ModelArchitecture, UncountedError, read_json
from lora_trainer.plan.choice import refusal
from lora_trainer.plan.families import counted, described
from lora_trainer.plan.hints import before
from lora_trainer.plan.planning import plan_by_weights, plan_of
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.preflight import ModelFacts, OutputCheck, Preflight, RowFacts
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import Summary
from lora_trainer.spec.uri import ClaimUri, parse_uri
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.model_headers import ModelHeaders, read_headers
from lora_trainer.storage.outputs import open_publisher
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.claim_room import check_claim
from lora_trainer.train.inputs import fetch_model, keep_encoded
from lora_trainer.train.objective import encoder_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A base model without its weights: its files, the shape that they have, and the adapter that the run puts on.

    The latter two are None where the kind is not known well enough to count: only the training can tell then.
    """

    headers: ModelHeaders
    shape: ModelArchitecture | None
    adapter: Adapter | None


def preflight(config: TrainConfig, volumes: Volumes, hub: Hub, *, fill: bool = False) -> Summary:
    """Look at everything that a run needs, and plan it; with `fill` model and data are in the cache afterwards.

    Raises `TrainerError` with the reason that the training would have given, and `DoesNotFitError`.
    """
    chosen = chosen_template(config.dataset, volumes)
    begun("looking at the model")
    model = look_at_model(config, volumes, hub)
    begun("trying the output")
    output = check_output(config, volumes)
    samples = load_index(config, volumes, hub)
    encoder = encoder_of(config, model.headers.base, chosen)
    # What is encoded for the training is counted on the way: nothing is tokenized twice.
    rows = keep_encoded(samples, model.headers.base, encoder) if fill else None
    if rows is None:
        check = partial(check_token, model.headers.base, encoder)
        rows = count_rows(samples, encoder, config.training.seed, check_token=check)
    found = Preflight(model=model_facts(model), dataset=rows, output=output)
    plan = make_plan(config, model, rows)
    check_claim(config, plan, volumes)
    if fill:
        begun("filling the cache")
        fetch_model(config.model.uri, volumes, hub)
    return Summary(
        reason=Reason.PREFLIGHT_PASSED,
        message=_sentence(config, found, filled=fill),
        preflight=found,
        plan=plan,
        advice=before(
            config,
            found,
            plan if model.shape and model.adapter else None,
            model.shape,
            columns=samples.columns,
        ),
    )


def look_at_model(config: TrainConfig, volumes: Volumes, hub: Hub) -> Model:
    """Configuration, headers and the names that the adapter resolves to. Raises `TrainerError`."""
    address = config.model.uri
    headers = read_headers(address, volumes, hub)
    check_tokenizer(headers.base, address)
    try:
        text = (headers.base.folder / "config.json").read_text(encoding="utf-8")
        shape = counted(described(read_json(text, "config.json"), "config.json"), headers.parameters)
    except UncountedError as error:
        return _uncounted(headers, error)
    except ArchitectureError as error:
        raise ConfigError(f"model.uri is {address}: {error}") from error
    try:
        adapter = plan_adapter(config.lora, shape)
    except AdapterError as error:
        if shape.spread >= GUESSED:
            return _uncounted(headers, error)
        raise ConfigError(str(error)) from error
    refused = refusal(config, shape)
    if refused:
        raise ConfigError(refused)
    for sentence in (*shape.doubts, *adapter.doubts):
        log.warning("%s", sentence)
    return Model(headers=headers, shape=shape, adapter=adapter)


def _uncounted(headers: ModelHeaders, error: ValueError) -> Model:
    """A guess is no reason to refuse: the training looks at the modules themselves."""
    log.warning("the layers of the model are not known, but only its weights: %s", one_sentence(error))
    return Model(headers=headers, shape=None, adapter=None)


def model_facts(model: Model) -> ModelFacts:
    """What the status says of a model."""
    shape, adapter = model.shape, model.adapter
    if shape is None or adapter is None:
        return ModelFacts(
            revision=model.headers.base.revision,
            model_type=model.headers.base.model_type,
            parameters=model.headers.parameters,
            weight_bytes=model.headers.weight_bytes,
            linear_modules=0,
            adapted=0,
            target_modules=(),
            trainable_parameters=0,
            known=False,
        )
    return ModelFacts(
        revision=model.headers.base.revision,
        model_type=model.headers.base.model_type,
        parameters=shape.parameters,
        weight_bytes=model.headers.weight_bytes,
        linear_modules=sum(len(layer.linear) for layer in shape.layers),
        adapted=adapter.modules,
        target_modules=target_names(shape, adapter),
        trainable_parameters=adapter.parameters,
        known=shape.spread < GUESSED,
    )


def target_names(shape: ModelArchitecture, adapter: Adapter) -> tuple[str, ...]:
    """The shortest endings that select the modules of an adapter, as the trainer names them."""
    names = [(name, adapter.ranks[layer][position] > 0) for layer, position, name, _ in shape.modules()]
    return short_names([name for name, is_adapted in names if is_adapted], [name for name, _ in names])


def check_output(config: TrainConfig, volumes: Volumes) -> OutputCheck:
    """Try the output's address with its credentials; a claim is not mounted here. Raises `TrainerError`."""
    if isinstance(parse_uri(config.output.uri), ClaimUri):
        return OutputCheck.AT_TRAINING
    open_publisher(config, volumes).check()
    return OutputCheck.CHECKED


def make_plan(config: TrainConfig, model: Model, rows: RowFacts) -> RunPlan:
    """What the run will take, by the weights alone where the model's layers are not known.

    Raises `DoesNotFitError` where it is more than a device that is known has.
    """
    if model.shape is None or model.adapter is None:
        longest = rows.longest_tokens if rows.sampled is None else None
        return plan_by_weights(config, model.headers.parameters, longest)
    plan = plan_of(
        config,
        model.shape,
        model.adapter,
        tokens=rows.tokens,
        rows=rows.train_samples,
        target_share=rows.target_tokens / rows.tokens,
        longest=rows.longest_tokens if rows.sampled is None else None,
        p95=rows.p95_tokens,
    )
    if plan.fits is False and plan.device is not None:
        raise DoesNotFitError(plan.reason, plan)
    return plan


def _sentence(config: TrainConfig, found: Preflight, *, filled: bool) -> str:
    model, rows = found.model, found.dataset
    checked = "was tried" if found.output is OutputCheck.CHECKED else "is tried when the training begins"
    samples = rows.train_samples + rows.validation_samples
    trains = f"{model.trainable_parameters:,} to train" if model.linear_modules else "of layers that are not known here"
    return (
        f"{config.model.uri} ({model.model_type}, {model.parameters:,} parameters, {trains}) and "
        f"{samples:,} rows of {config.dataset.uri} ({rows.format}, {rows.skipped_samples} skipped) are "
        f"good{', and in the cache' if filled else ''}; {config.output.uri} {checked}"
    )
