"""`lora ask`: one question, or a conversation, with base model and adapter beside each other."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lora_client.cluster.connection import Cluster, Object
from lora_client.cluster.helper import helper, why_ended
from lora_client.cluster.process import Process
from lora_client.errors import ClientError
from lora_client.output import Form, data, note, say
from lora_client.views.answers import Answer, side_by_side
from lora_client.views.helper_pod import CONTAINER, Need, adapter_place, folder_of, memory_on_cpu
from lora_client.views.uses import require_askable
from lora_operator.model.wording import byte_size
from lora_trainer.spec.release import RELEASE

_FIRST_S = 1800.0
"""Until the first answer: the model is loaded, and fetched where no cache has it."""
_LARGE = 8 * 2**30
_ANEW = "/new"
_UNKNOWN = "unrecognized arguments"
"""What another release's trainer says of an option that it lacks."""
Answering = Callable[[str, Sequence[Answer]], Answer]
"""From a question and what was answered before it."""


def ask(cluster: Cluster, name: str, question: str | None, form: Form, *, need: Need, most_tokens: int) -> None:
    """Ask and print. Without a question, lines that are typed are a conversation, and others are asked each by itself.

    Raises `ClientError`.
    """
    if question is not None and not question.strip():
        raise ClientError("QUESTION is empty: type one, or leave it out to be asked for one after the other")
    if form is Form.NAME:
        raise ClientError("-o is name: an answer has none, so use text, json or yaml")
    before: list[Answer] = []
    lasts = question is None and sys.stdin.isatty()
    with conversation(cluster, cluster.get("lorafinetunes", name), need, most_tokens) as answer:
        if lasts:
            note(f"Each answers with the conversation so far in mind: {_ANEW} begins another one, Ctrl-D ends it")
        for asked in _questions(question):
            if lasts and asked.strip() == _ANEW:
                before.clear()
                continue
            found = answer(asked, before)
            _print(found, form)
            before += [found] if lasts else []


@contextmanager
def conversation(cluster: Cluster, run: Object, need: Need, most_tokens: int) -> Iterator[Answering]:
    """What answers a question, for as long as its pod lives. Raises `ClientError`."""
    folder = folder_of(adapter_place(run))
    require_askable(run, need)
    needed = 0 if need.gpu else memory_on_cpu(run)
    if needed > _LARGE:
        note(f"On a CPU the model takes {byte_size(needed)} of memory and minutes for an answer: --gpu is faster")
    command = ["python3", "-m", "lora_trainer.cli", "ask", "--adapter", folder, "--input", "json", "--format", "json"]
    command += ["--max-new-tokens", str(most_tokens)]
    with helper(cluster, run, need) as pod, Process(cluster, pod, CONTAINER, command) as process:
        note("Loading the model ...")

        def answer(question: str, before: Sequence[Answer]) -> Answer:
            try:
                process.write(request_of(question, before))
                line = process.line(_FIRST_S)
            except ClientError as error:
                if _UNKNOWN in str(error):
                    raise ClientError(_other_release(f"The run's trainer refused ({error})")) from error
                if why := why_ended(cluster, pod):
                    raise ClientError(why) from error
                raise
            return answer_of(line)

        yield answer


def _questions(question: str | None) -> Iterator[str]:
    if question is not None:
        yield question
        return
    typed = sys.stdin.isatty()
    # input() edits lines where both are terminals, and else prompts among the answers.
    edited = typed and sys.stdout.isatty()
    while True:
        if typed and not edited:
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = input("> " if edited else "")
        except EOFError:
            return
        if line.strip():
            yield line


def request_of(question: str, before: Sequence[Answer] = ()) -> bytes:
    """A line that the trainer reads, with the question as it was typed."""
    request: dict[str, Any] = {"question": question, "before": [asdict(answer) for answer in before]}
    return json.dumps(request).encode() + b"\n"


def answer_of(line: bytes) -> Answer:
    """What the trainer prints for a question. Raises `ClientError`."""
    try:
        record: Object = json.loads(line)
        return Answer(question=str(record["question"]), base=str(record["base"]), adapter=str(record["adapter"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(_other_release(f"The pod answered what cannot be read ({line[:80]!r})")) from error


def _other_release(why: str) -> str:
    return f"{why}: only a run of this release ({RELEASE}) can be asked, and lora clone NAME starts one"


def _print(answer: Answer, form: Form) -> None:
    record = {"question": answer.question, "base": answer.base, "adapter": answer.adapter}
    if form is Form.JSON:
        say(json.dumps(record, ensure_ascii=False))
    elif form is Form.YAML:
        say("---")
        data(form, record)
    else:
        say(side_by_side([answer], shutil.get_terminal_size((100, 24)).columns))
    sys.stdout.flush()
