"""What the summary of a run that went well says of it."""

from lora_trainer.spec import codec
from lora_trainer.spec.config import MergePrecision
from lora_trainer.spec.summary import Results, Verification, clip
from lora_trainer.storage.manifest import Form, Manifest


def results_of(manifest: Manifest, verification: Verification) -> Results:
    """The numbers, as measured and verified."""
    merged, failure = manifest.merged, manifest.merge_failure
    return Results(
        **codec.encode(manifest.measured),
        merged_loss=None if merged is None else merged.loss,
        merged_expected_loss=None if merged is None else merged.expected,
        merge_failure=None if failure is None else clip(failure, 512),
        verification=verification,
    )


def success_sentence(uri: str, manifest: Manifest) -> str:
    """The summary's message of a run that went well."""
    measured = manifest.measured
    rows = "held-out rows" if measured.held_out else "training rows (none were held out)"
    what = {Form.ADAPTER: "adapter is", Form.MERGED: "merged model is", Form.BOTH: "adapter and merged model are"}
    merge = "" if manifest.merge_failure is None else f"; there is no merged model: {manifest.merge_failure}"
    lost = manifest.lost_by_rounding if manifest.config.output.merge_precision is MergePrecision.AUTO else ""
    rounded = f"; rounding the merged weights costs {lost}, which output.mergePrecision: FP32 keeps" if lost else ""
    error = measured.improvement_standard_error
    sure = "" if error is None else f" (± {error:.3f})"
    return (
        f"loss on {rows} went from {measured.eval_loss_before:.3f} to {measured.eval_loss_after:.3f}{sure}; "
        f"the verified {what[manifest.format]} at {uri}{merge}{rounded}"
    )
