"""What a run without a cluster prints at its end."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.test_manifest import filled

from lora_trainer.host.supervisor import Ending
from lora_trainer.local_run import show_summary
from lora_trainer.result.serving import TEMPLATE
from lora_trainer.spec.advice import Advice
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Artifact, ResolvedRun, Results, SavedState, Summary, Verification


def ending(*, folder: Path | None = Path("/c/out"), **values: Any) -> Ending:
    """A run that went well."""
    artifact = Artifact(
        **{
            "uri": "pvc://adapters/tone",
            "digest": "sha256:" + "a" * 64,
            "size_bytes": 2**20,
            "format": "peft",
            "base_model": "org/tiny",
            "base_revision": "c" * 40,
            "rank": 4,
            "servable": True,
            "serving": "--enable-lora --max-lora-rank 8",
            **values,
        }
    )
    results = filled(Results, verification=filled(Verification))
    resolved = filled(ResolvedRun, target_modules=("q_proj",))
    summary = Summary(reason=Reason.SUCCEEDED, message="well", results=results, resolved=resolved, artifact=artifact)
    return Ending(code=0, summary=summary, folder=folder)


ADAPTER = f"vllm serve org/tiny --revision {'c' * 40} --enable-lora --max-lora-rank 8 --lora-modules tone="


@pytest.mark.parametrize(
    ("reason", "step", "text"),
    [
        (Reason.EVICTED, None, "Interrupted. No step was saved: the same command starts over."),
        (
            Reason.EVICTED,
            7,
            "Interrupted.\nStep 7 is saved: the same command with --resume continues from there.",
        ),
        (Reason.STORAGE_FULL, None, "StorageFull: no room (exit code 143)"),
    ],
)
def test_a_run_that_was_stopped_says_what_is_saved(reason: Reason, step: int | None, text: str) -> None:
    """Nobody was evicted from a laptop."""
    checkpoint = None if step is None else SavedState(uri="pvc://a/step", step=step)
    stopped = Ending(code=143, summary=Summary(reason=reason, message="no room", checkpoint=checkpoint))
    assert show_summary(stopped) == text


@pytest.mark.parametrize(
    ("values", "present", "absent"),
    [
        ({}, ("Adapter: /c/out", f"{ADAPTER}/c/out", 'revision="cccc'), ("cannot",)),
        ({"base_revision": "sha256:1", "base_model": "pvc://m/t"}, ("vllm serve path/of/the/base/model --enable",), ()),
        (
            {"servable": False, "serving": "no DoRA; merge"},
            ("vLLM cannot serve the adapter: no DoRA; merge",),
            ("vllm",),
        ),
        ({"serving_needs": "vLLM 0.32"}, ("Serve it (vLLM 0.32 or later):", ADAPTER), ()),
        (
            {"folder": None, "uri": "hf://me/tone", "serving": f"--enable-lora --chat-template {TEMPLATE}"},
            ("--chat-template path/of/its/copy/chat_template.jinja --lora-modules tone=me/tone",),
            (),
        ),
        ({"format": "merged", "serving": ""}, ("Merged model: /c/out", "vllm serve /c/out"), ("PeftModel", "lora-mod")),
        ({"format": "peft+merged"}, (f"{ADAPTER}/c/out", "vllm serve /c/out/merged", "PeftModel"), ()),
        ({"folder": None, "uri": "hf://me/tone"}, ("Adapter: hf://me/tone", f"{ADAPTER}me/tone"), ()),
        ({"folder": None, "uri": "oci://r/me/tone:1"}, (f"{ADAPTER}path/of/its/copy",), ()),
    ],
)
def test_the_end_of_a_run_says_how_to_load_and_serve_what_came_out(
    values: dict[str, Any], present: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    """Commands that run as they stand, for each form and place."""
    text = show_summary(ending(**values))
    assert [part for part in present if part not in text] == []
    assert [part for part in absent if part in text] == []


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"merged_expected_loss": 1.5}, "Merged model: loss 1.000000, rounding its weights costs -5.0e-01"),
        ({"merge_failure": "no memory"}, "There is no merged model: no memory"),
        ({"merged_loss": None}, None),
    ],
)
def test_the_end_of_a_run_says_what_became_of_the_merge(values: dict[str, Any], line: str | None) -> None:
    """The cost of rounding, or why there is no merged model; nothing where none was asked for."""
    done = ending(format="peft+merged")
    assert done.summary.results is not None
    plain = {"merged_loss": 1.0, "merged_expected_loss": None, "merge_failure": None}
    results = dataclasses.replace(done.summary.results, **{**plain, **values})
    lines = show_summary(dataclasses.replace(done, summary=dataclasses.replace(done.summary, results=results)))
    assert [shown for shown in lines.splitlines() if "rounding" in shown or "no merged" in shown] == [line] * bool(line)


def test_the_end_of_a_run_advises_for_the_next_one() -> None:
    """Warnings first; nothing where there is nothing to say, or no words for it."""
    advice = (
        Advice(code="AlphaRatio", values={"rank": "16", "double": "32", "alpha": "64", "ratio": "4"}),
        Advice(code="LearningRate", values={"rate": "0.5"}),
        Advice(code="OfALaterRelease"),
    )
    done = ending()
    assert "Advice" not in show_summary(done)
    lines = show_summary(dataclasses.replace(done, summary=dataclasses.replace(done.summary, advice=advice))).split(
        "\n"
    )
    assert lines[-3] == "Advice for the next run:"
    assert lines[-2].startswith("  Warning: Set spec.training.learningRate")
    assert lines[-1].startswith("  Info: Set spec.lora.alpha from 16 to 32")
