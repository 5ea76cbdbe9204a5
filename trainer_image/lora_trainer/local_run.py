"""A run without a cluster: the last of its name, and a summary for a person."""

import json
from pathlib import Path, PurePosixPath

from lora_trainer.distributed.logs import with_error
from lora_trainer.errors import ConfigError
from lora_trainer.host.supervisor import Ending
from lora_trainer.plan.hints import spoken
from lora_trainer.result.serving import command, merged_command
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import CAUSAL_CLASS, Artifact, Results, Summary
from lora_trainer.spec.uri import HubUri, parse_uri
from lora_trainer.storage.manifest import MERGED_FOLDER, Form, Serving, loadable
from lora_trainer.storage.run_folders import folders_of_name
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import RUN_FILE, newest_of

_COPY = "path/of/its/copy"


def last_uid(config: TrainConfig, volumes: Volumes) -> str:
    """The run of this name that saved its state last on the claim. Raises `ConfigError` where none did."""
    claim = checkpoint_claim(config)
    folders = folders_of_name(config.run.name, claim, volumes) if claim is not None else ()
    found = [checkpoint for folder in folders if (checkpoint := newest_of(folder)[0]) is not None]
    if not found:
        where = f"the claim {claim} holds no checkpoint of it" if claim else "its output names no claim for checkpoints"
        raise ConfigError(f"--resume: no run {config.run.name} was saved ({where}); start it without --resume")
    newest = max(found, key=lambda checkpoint: (checkpoint.saved_at, checkpoint.step))
    try:
        record = json.loads((newest.folder / RUN_FILE).read_text(encoding="utf-8"))
        return str(record["config"]["run"]["uid"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--resume: {newest.folder / RUN_FILE} does not name its run: start without --resume"
        ) from error


def show_summary(ending: Ending) -> str:
    """What came out of it, in a few lines."""
    summary = ending.summary
    if not summary.succeeded or summary.results is None or summary.artifact is None:
        return _ended_early(ending)
    return "\n".join((*_losses(summary), *_artifact(summary.artifact, ending), *_advice(summary)))


def _advice(summary: Summary) -> tuple[str, ...]:
    lines = tuple(f"  {one.severity.value}: {one.line}" for one in spoken(summary.advice))
    return ("Advice for the next run:", *lines) if lines else ()


def _ended_early(ending: Ending) -> str:
    summary = ending.summary
    interrupted = summary.reason is Reason.EVICTED
    # What stops a run here is a person at a terminal: nothing was evicted.
    ended = "Interrupted." if interrupted else f"{summary.reason.value}: {summary.message} (exit code {ending.code})"
    if summary.checkpoint is not None:
        step = summary.checkpoint.step
        ended = f"{ended}\nStep {step} is saved: the same command with --resume continues from there."
    elif interrupted:
        ended = f"{ended} No step was saved: the same command starts over."
    return ended


def _losses(summary: Summary) -> tuple[str, ...]:
    results, resolved = summary.results, summary.resolved
    if results is None or resolved is None:
        return ()
    rows = "held-out rows" if results.held_out else "training rows, since none were held out"
    verified = results.verification
    gain = results.eval_loss_before - results.eval_loss_after
    return (
        f"Loss on {rows}:",
        f"  base model    {with_error(results.eval_loss_before, results.eval_loss_before_standard_error)}",
        f"  with adapter  {with_error(results.eval_loss_after, results.eval_loss_after_standard_error)}",
        f"  improvement   {with_error(gain, results.improvement_standard_error)}",
        f"Trained {resolved.trainable_parameters:,} of {resolved.total_parameters:,} parameters on {resolved.device},",
        f"  {results.steps} steps, {results.trained_tokens} tokens, {results.tokens_per_second:.0f} tokens/s",
        f"Verified in a fresh process: loss {verified.loss:.6f}",
        f"  difference {verified.difference:.1e}, tolerance {verified.tolerance:.2g}"
        + ("" if verified.noise is None else f", noise of the device {verified.noise:.1e}"),
        *_merging(results),
    )


def _merging(results: Results) -> tuple[str, ...]:
    if results.merge_failure is not None:
        return (f"There is no merged model: {results.merge_failure}",)
    if results.merged_loss is None or results.merged_expected_loss is None:
        return ()
    cost = results.merged_loss - results.merged_expected_loss
    return (f"Merged model: loss {results.merged_loss:.6f}, rounding its weights costs {cost:+.1e}",)


def _artifact(artifact: Artifact, ending: Ending) -> tuple[str, ...]:
    place = _place(artifact, ending)
    resolved = ending.summary.resolved
    name = resolved.model_class if resolved else CAUSAL_CLASS
    size = f"{artifact.size_bytes / 2**20:.1f} MiB, {artifact.digest[:19]}…"
    load: tuple[str, ...]
    if artifact.format == Form.MERGED:
        what, load = "Merged model", (f'  model = {name}.from_pretrained("{place}")',)
    else:
        base = loadable(artifact.base_model, artifact.base_revision)
        what, load = (
            "Adapter",
            (
                f"  base = {name}.from_pretrained({base})",
                f'  model = PeftModel.from_pretrained(base, "{place}")',
            ),
        )
    where = f"{what}: {ending.folder or artifact.uri} ({size})"
    return (where, "Load it:", *load, *_serve(artifact, place, ending.folder))


def _place(artifact: Artifact, ending: Ending) -> str:
    """What libraries and servers take for the result: a path, or a name on the Hub."""
    if ending.folder is not None:
        return str(ending.folder)
    uri = parse_uri(artifact.uri)
    return uri.repo if isinstance(uri, HubUri) else _COPY


def _serve(artifact: Artifact, place: str, folder: Path | None) -> tuple[str, ...]:
    if artifact.format == Form.MERGED:
        return ("Serve it:", f"  {merged_command(place)}")
    # Flags, or else the reason why there are none.
    servable = artifact.serving.startswith("--")
    serving = Serving(servable=servable, text=artifact.serving, rank=artifact.rank)
    typed = command(
        serving,
        base_model=artifact.base_model,
        base_revision=artifact.base_revision,
        name=PurePosixPath(artifact.uri).name.partition(":")[0],
        path=place,
        folder=str(folder or _COPY),
    )
    lines: tuple[str, ...] = (f"vLLM cannot serve the adapter: {serving.text}",)
    if typed is not None:
        needs = f" ({artifact.serving_needs} or later)" if artifact.serving_needs else ""
        lines = (f"Serve it{needs}:", f"  {typed}")
    if artifact.format == Form.BOTH:
        lines += ("Serve the merged model:", f"  {merged_command(f'{place}/{MERGED_FOLDER}')}")
    return lines
