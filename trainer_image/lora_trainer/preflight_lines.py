"""What preflight found out, for a person."""

from collections.abc import Iterator

from lora_trainer.spec.preflight import ModelFacts, RowFacts
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import Summary


def show_preflight(summary: Summary) -> str:
    """A few lines; of a failure its sentence alone."""
    if summary.preflight is None or summary.plan is None:
        return summary.message
    found = summary.preflight
    return "\n".join((summary.message, *_model(found.model), *_rows(found.dataset), *_plan(summary.plan)))


def _model(model: ModelFacts) -> Iterator[str]:
    names = ", ".join(model.target_modules[:8])
    yield f"Adapter: {model.trainable_parameters:,} of {model.parameters:,} parameters,"
    yield f"  in {model.adapted} of {model.linear_modules} linear modules ({names})"
    if not model.known:
        yield "  The kind of model is not known here: names and sizes of its modules are a guess."


def _rows(rows: RowFacts) -> Iterator[str]:
    left_out = f"{rows.skipped_samples:,} skipped, {rows.duplicate_samples:,} duplicates"
    yield f"Rows: {rows.train_samples:,} to train on, {rows.validation_samples:,} held out; {left_out}"
    error = "" if rows.tokens_standard_error is None else f" ± {rows.tokens_standard_error:,}"
    yield f"Tokens: {rows.tokens:,}{error}, {rows.target_tokens:,} of them learned"
    if rows.sampled is not None:
        yield f"  by {rows.sampled:,} of the rows"
    yield f"  of a row {rows.p50_tokens:,} (median), {rows.p95_tokens:,} (95 %), {rows.longest_tokens:,} (longest)"
    if rows.truncated_samples:
        yield f"  {rows.truncated_tokens:,} are cut off {rows.truncated_samples:,} rows"
    yield f"First row: {rows.first_row}"


def _plan(plan: RunPlan) -> Iterator[str]:
    yield f"Plan: {plan.peak_bytes / 2**30:.1f} GiB at the peak, quantization {plan.quantization.value}"
    yield f"  {plan.reason}"
