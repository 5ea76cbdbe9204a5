"""`lora ask`: one question, or a conversation, with base model and adapter beside each other."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_client.cluster.connection import Cluster, Object
from lora_client.cluster.helper import helper, why_ended
from lora_client.cluster.process import Process
from lora_client.errors import ClientError
from lora_client.output import Form, data, note, say
from lora_client.views.answers import Answer, side_by_side
from lora_client.views.helper_pod import CONTAINER, Need, adapter_place, folder_of, memory_on_cpu
from lora_client.views.uses import require_askable
from lora_operator.views.wording import byte_size

_FIRST_S = 1800.0
"""Until the first answer: the model is loaded, and fetched where no cache has it."""
_LARGE = 8 * 2**30


def ask(cluster: Cluster, name: str, question: str | None, form: Form, *, need: Need, most_tokens: int) -> None:
    """Ask and print; without a question, one for each line that is typed. Raises `ClientError`."""
    if question is not None and not question.strip():
        raise ClientError("QUESTION is empty: type one, or leave it out to be asked for one after the other")
    if form is Form.NAME:
        raise ClientError("-o is name: an answer has none, so use text, json or yaml")
    with conversation(cluster, cluster.get("lorafinetunes", name), need, most_tokens) as answer:
        for asked in _questions(question):
            _print(answer(asked), form)


@contextmanager
def conversation(cluster: Cluster, run: Object, need: Need, most_tokens: int) -> Iterator[Callable[[str], Answer]]:
    """What answers a question, for as long as its pod lives. Raises `ClientError`."""
    folder = folder_of(adapter_place(run))
    require_askable(run, need)
    needed = 0 if need.gpu else memory_on_cpu(run)
    if needed > _LARGE:
        note(f"On a CPU the model takes {byte_size(needed)} of memory and minutes for an answer: --gpu is faster")
    command = ["python3", "-m", "lora_trainer.cli", "ask", "--adapter", folder, "--format", "json"]
    command += ["--max-new-tokens", str(most_tokens)]
    with helper(cluster, run, need) as pod, Process(cluster, pod, CONTAINER, command) as process:
        note("Loading the model ...")

        def answer(question: str) -> Answer:
            try:
                process.write(" ".join(question.split()).encode() + b"\n")
                line = process.line(_FIRST_S)
            except ClientError as error:
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


def answer_of(line: bytes) -> Answer:
    """What the trainer prints for a question. Raises `ClientError`."""
    try:
        record: Object = json.loads(line)
        return Answer(question=str(record["question"]), base=str(record["base"]), adapter=str(record["adapter"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(
            f"The pod answered what cannot be read ({line[:80]!r}): lora ask needs a run of this release"
        ) from error


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
