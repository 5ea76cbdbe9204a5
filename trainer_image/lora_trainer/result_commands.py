"""Commands on finished results: publish, verify, export, merge, ask."""

import argparse
import sys

from lora_trainer.by_hand import check_checkpoint, check_question, check_result
from lora_trainer.command_options import by_hand, say, volumes
from lora_trainer.result.serving import merged_command
from lora_trainer.spec.config import MergePrecision
from lora_trainer.storage.model_folder import check_on_claim
from lora_trainer.storage.publishing import publish_folder


def publish(options: argparse.Namespace) -> int:
    """Put a finished result at an address; the exit status."""

    def action() -> None:
        check_result(options.folder)
        published = publish_folder(options.folder, options.uri, volumes(options))
        say(f"{published.uri} ({published.digest})")

    return by_hand(action)


def verify(options: argparse.Namespace) -> int:
    """Check an adapter's digests and its loss; the exit status."""

    def action() -> None:
        check_on_claim(check_result(options.folder).config.model.uri, volumes(options))
        from lora_trainer.result.verify import verify  # noqa: PLC0415
        from lora_trainer.storage.hub import Hub  # noqa: PLC0415 - PyTorch, after what needs none of it

        result = verify(options.folder, volumes(options), Hub(), anywhere=True)
        say(f"verified: loss {result.loss:.6f}, within {result.tolerance:.2g} of what the training measured")

    return by_hand(action)


def export(options: argparse.Namespace) -> int:
    """Make a verified adapter of a checkpoint; the exit status."""

    def action() -> None:
        check_checkpoint(options.checkpoint, volumes(options))
        from lora_trainer.result.export_checkpoint import export_checkpoint  # noqa: PLC0415
        from lora_trainer.storage.hub import Hub  # noqa: PLC0415 - as above

        result = export_checkpoint(options.checkpoint, options.output, volumes(options), Hub())
        say(f"{options.output}: verified, loss {result.loss:.6f}, within {result.tolerance:.2g} of the checkpoint's")

    return by_hand(action)


def merge(options: argparse.Namespace) -> int:
    """Make a model of an adapter and its base model; the exit status."""

    def action() -> None:
        check_on_claim(check_result(options.adapter).config.model.uri, volumes(options))
        from lora_trainer.result.merge_stage import merge_by_hand  # noqa: PLC0415
        from lora_trainer.storage.hub import Hub  # noqa: PLC0415 - as above

        result = merge_by_hand(
            options.adapter, options.output, volumes(options), Hub(), MergePrecision(options.precision)
        )
        say(f"{options.output}: loss {result.loss:.6f}, within {result.tolerance:.2g} of base model and adapter")
        say(f"Serve it: {merged_command(str(options.output))}")

    return by_hand(action)


def ask(options: argparse.Namespace) -> int:
    """Answers of base model and adapter to the same questions; the exit status.

    Without a question, each line of standard input is one, by itself or as JSON, answered before the next is read.
    """

    def action() -> None:
        check_question(options.adapter, options.base, volumes(options))
        from lora_trainer.ask import Pair, asked_in, line, show  # noqa: PLC0415 - as above

        as_json = options.format == "json"
        pair = Pair(options.base, options.adapter, options.max_new_tokens, volumes(options))
        if options.question:
            say(show([pair.answer(question) for question in options.question], as_json=as_json))
            return
        for text in filter(str.strip, sys.stdin):
            answer = pair.answer(*asked_in(text)) if options.input == "json" else pair.answer(text.strip())
            if not say(line(answer) if as_json else show([answer], as_json=False)):
                return

    return by_hand(action)
