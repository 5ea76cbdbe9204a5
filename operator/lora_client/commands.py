"""The command line: its verbs and options; what a verb does is imported for it alone."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from lora_client import typed
from lora_client.errors import FAILED, ClientError
from lora_client.output import Form, note
from lora_client.views.arguments import refused
from lora_trainer.spec.release import RELEASE

if TYPE_CHECKING:
    from lora_client.cluster.connection import Cluster

COMPLETION_VARIABLE = "_LORA_COMPLETE"

app = typer.Typer(
    name="lora",
    help="Fine-tune language models with LoRA on Kubernetes. Every verb has --help; so has kubectl lora.",
    rich_markup_mode=None,
    add_completion=False,  # `lora completion` prints it
    context_settings={"help_option_names": ["-h", "--help"]},
)


def connect(context: str | None, namespace: str | None) -> "Cluster":
    """The cluster that is meant, also by the commands that are printed. Raises `ClientError`."""
    from lora_client.cluster import connection

    cluster = connection.connect(context, namespace)
    usual = "" if namespace else cluster.namespace
    typed.remember(lambda: (cluster.namespace if cluster.namespace != usual else "", context or ""))
    return cluster


def _complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of runs, for the shell; nothing where they cannot be listed."""
    from lora_client.views.resources import name_of

    before_the_verb = ctx.parent.params if ctx.parent else {}
    context, namespace = (ctx.params.get(key) or before_the_verb.get(key) for key in ("context", "namespace"))
    try:
        with connect(context, namespace) as cluster:
            return [name for run in cluster.items("lorafinetunes") if (name := name_of(run)).startswith(incomplete)]
    except ClientError:
        return []


def _run_name(ctx: typer.Context, typed: str) -> str:
    if ctx.resilient_parsing:  # of a shell that completes it
        return typed
    from lora_client.views.resources import run_name

    return run_name(typed)


def _a_run(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text, autocompletion=_complete_run, callback=_run_name)


Context = Annotated[str | None, typer.Option("--context", metavar="NAME", help="Context of the kubeconfig.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace; default: the context's.")
]
Output = Annotated[Form, typer.Option("--output", "-o", help="Output format.")]
Name = Annotated[str, _a_run("NAME", "Name of the run.")]
File = Annotated[
    str, typer.Option("--file", "-f", metavar="FILE", help="Manifest of one LoRAFineTune; - is standard input.")
]
Memory = Annotated[
    str, typer.Option(metavar="QUANTITY", help="Memory of the pod; default: the training's, or room for fp32 on a CPU.")
]


@app.callback(invoke_without_command=True)
def _lora(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the release of this client.")] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    if version or ctx.invoked_subcommand is None:
        sys.stdout.write(f"lora {RELEASE}\n" if version else f"{ctx.get_help()}\n")
    # As in kubectl they may stand before the verb, whose own ones count more.
    given = {key: value for key, value in (("context", context), ("namespace", namespace)) if value is not None}
    group: Any = ctx.command
    ctx.default_map = dict.fromkeys(group.list_commands(ctx), given)


@app.command("list")
def list_runs(
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List those of all namespaces.")] = False,
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """List the runs of a namespace."""
    from lora_client.verbs import reading

    with connect(context, namespace) as cluster:
        reading.list_runs(cluster, output, everywhere=everywhere)


@app.command()
def status(name: Name, output: Output = Form.TEXT, context: Context = None, namespace: Namespace = None) -> None:
    """Show a run's state, progress, losses, adapter and advice."""
    from lora_client.verbs import reading

    with connect(context, namespace) as cluster:
        reading.status(cluster, name, output)


@app.command()
def explain(name: Name, output: Output = Form.TEXT, context: Context = None, namespace: Namespace = None) -> None:
    """Show a run's state and what its objects say. YAML of Jobs, pods and queue; it changes nothing."""
    from lora_client.verbs import explaining

    with connect(context, namespace) as cluster:
        explaining.explain(cluster, name, output)


@app.command(options_metavar="-f FILE [OPTIONS]")
def validate(file: File, output: Output = Form.TEXT, context: Context = None, namespace: Namespace = None) -> int:
    """Ask the cluster whether it takes a manifest. Creates nothing; prints a sentence for every problem."""
    from lora_client.verbs import changing

    with connect(context, namespace) as cluster:
        return changing.validate(cluster, file, output, asked=namespace is not None)


@app.command(options_metavar="-f FILE [OPTIONS]")
def run(
    file: File,
    follow: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Follow it; the exit status is then the run's.")
    ] = True,
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> int:
    """Apply a manifest and watch the run. Exit status 0: it succeeded; 1: it failed or was refused."""
    from lora_client.verbs import changing
    from lora_client.views.resources import name_of, result

    with connect(context, namespace) as cluster:
        stored = changing.submit(cluster, file, output, asked=namespace is not None, follow=follow)
        if follow and not result(stored):
            return _watch(cluster, name_of(stored), output)
        return FAILED if result(stored) == "failed" else 0


@app.command()
def watch(name: Name, output: Output = Form.TEXT, context: Context = None, namespace: Namespace = None) -> int:
    """Follow a run to its end. Shows queue place, phase, losses, speed, time left; Ctrl-C leaves it running."""
    with connect(context, namespace) as cluster:
        return _watch(cluster, name, output)


def _watch(cluster: "Cluster", name: str, form: Form) -> int:
    from lora_client.verbs.watch import watch

    try:
        return watch(cluster, name, form)
    except KeyboardInterrupt:
        note(f"\n{name} continues: lora watch {name} -n {cluster.namespace} shows it again")
        raise


@app.command()
def suspend(name: Name, output: Output = Form.TEXT, context: Context = None, namespace: Namespace = None) -> None:
    """Let a run save its state and free its GPUs."""
    _set_suspended(name, output, context, namespace, suspend=True)


@app.command()
def resume(name: Name, output: Output = Form.TEXT, context: Context = None, namespace: Namespace = None) -> None:
    """Let a suspended run continue from its last step."""
    _set_suspended(name, output, context, namespace, suspend=False)


def _set_suspended(name: str, form: Form, context: str | None, namespace: str | None, *, suspend: bool) -> None:
    from lora_client.verbs import changing

    with connect(context, namespace) as cluster:
        changing.set_suspended(cluster, name, form, suspend=suspend)


@app.command()
def logs(
    name: Name,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the last one.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="train or preflight; default: the training, before it has a pod the preflight.")
    ] = None,
    index: Annotated[
        int, typer.Option(min=0, help="Index of the pod, of several that train together; 0 is the leader.")
    ] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", "-F", help="Follow the log as it grows.")] = False,
    tail: Annotated[
        int | None, typer.Option(min=0, metavar="LINES", help="Print only this many of the last lines.")
    ] = None,
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Print the log of a run. Once its pods are gone, that is the one kept beside its adapter."""
    from lora_client.verbs import logs as verb

    with connect(context, namespace) as cluster:
        verb.logs(cluster, name, output, attempt=attempt, stage=stage, index=index, follow=follow, tail=tail)


@app.command()
def clone(
    name: Name,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="For example lora.rank=32; repeatable.")
    ] = None,
    new: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Default: the name with a number.")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the manifest, create nothing.")] = False,
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Start a new run from an old one, with changes. What defines a run cannot be changed afterwards."""
    from lora_client.verbs import changing

    with connect(context, namespace) as cluster:
        changing.clone(cluster, name, new, changes or [], output, dry=dry)


@app.command()
def compare(
    first: Annotated[str, _a_run("A", "Name of a run.")],
    second: Annotated[str, _a_run("B", "Name of another.")],
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show what differs between two runs: settings and losses."""
    from lora_client.verbs import reading

    with connect(context, namespace) as cluster:
        reading.compare(cluster, first, second, output)


@app.command()
def pull(
    name: Name,
    folder: Annotated[str | None, typer.Argument(metavar="DIR", help="A new folder; default: the run's name.")] = None,
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Copy the adapter of a run here, its digest checked. The pod that reads it is gone afterwards."""
    from lora_client.verbs import pull as verb

    with connect(context, namespace) as cluster:
        verb.pull(cluster, name, folder, output)


@app.command()
def ask(
    name: Name,
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help="Omit it for a conversation; piped lines are asked separately."),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu/--cpu", help="On a GPU as the training had it, or slowly on a CPU.")
    ] = False,
    tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=100_000, help="Most tokens of an answer.")] = 64,
    memory: Memory = "",
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Ask base model and adapter the same question. The pod that answers is gone afterwards."""
    from lora_client.verbs import ask as verb
    from lora_client.views.helper_pod import Need

    need = Need(verb="ask", model=True, gpu=gpu, memory=memory)
    with connect(context, namespace) as cluster:
        verb.ask(cluster, name, question, output, need=need, most_tokens=tokens)


@app.command()
def serve(
    name: Name,
    kind: Annotated[str, typer.Option("--with", metavar="SERVER", help="vllm or kserve.")] = "vllm",
    output: Output = Form.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Print the manifest that serves an adapter, for kubectl apply."""
    from lora_client.verbs import serve as verb

    with connect(context, namespace) as cluster:
        verb.serve(cluster, name, kind, output)


@app.command()
def init(
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="A new file; - is standard output.")
    ] = "finetune.yaml",
    model: Annotated[str | None, typer.Option(metavar="URI", help="The base model.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="URI", help="The training data.")] = None,
    adapter: Annotated[str | None, typer.Option("--to", metavar="URI", help="Where the adapter goes.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the end of --to.")] = None,
    secret: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Secret with the Hub's token, a bucket's keys or a registry's login."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter; default 16.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of the run; default 1.")] = None,
    output: Output = Form.TEXT,
) -> None:
    """Write a manifest: three questions, or flags instead."""
    from lora_client.verbs import writing

    answers = {"model": model, "dataset": dataset, "output": adapter}
    writing.init(file, name=name, answers=answers, rank=rank, gpus=gpus, secret=secret, form=output)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="YAML of a tool, or a script's command line.")],
    file: Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="A new file; - is standard output.")] = "-",
    tool: Annotated[
        str | None,
        typer.Option("--from", metavar="TOOL", help="trl, axolotl or llama-factory; default: by its options."),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the run.")] = "converted",
    gpus: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="GPUs of the tool on a node; default: what its launcher says, else 1."),
    ] = None,
    output: Output = Form.TEXT,
) -> None:
    """Convert a run of TRL, Axolotl or LLaMA-Factory. Writes the manifest, and names what it leaves out."""
    from lora_client.verbs import writing

    writing.convert(source, name=name, tool=tool, gpus=gpus, output=file, form=output)


@app.command(options_metavar="-f FILE [OPTIONS]")
def plan(
    file: File,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="The model's config.json.")] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="GPU", help="A name (T4, NVIDIA-L4), slice (3g.40gb) or size (24GiB); repeatable."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the data set, to estimate hours.")] = None,
    output: Output = Form.TEXT,
) -> None:
    """Say what a run takes of which GPU. Needs neither GPU nor cluster."""
    from lora_client.verbs import writing

    writing.plan(file, config=config, gpus=gpu or [], tokens=tokens, form=output)


@app.command()
def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> int:
    """Print the completion of a shell. For instance: source <(lora completion bash)."""
    if shell not in ("bash", "zsh", "fish"):
        raise ClientError(f"SHELL is {shell}: must be bash, zsh or fish")
    return _complete(f"source_{shell}")


def _complete(instruction: str) -> int:
    """Answer a shell: with its script, or with what fits behind what was typed."""
    from typer.completion import completion_init, shell_complete  # type: ignore[attr-defined]

    completion_init()
    return shell_complete(get_command(app), {}, "lora", COMPLETION_VARIABLE, instruction)


def run_command(arguments: Sequence[str], program: str = "lora") -> int:
    """Run what the command line says; the exit status. Raises `ClientError`, for wrong arguments too."""
    typed.forget()
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        return _complete(instruction)
    command = get_command(app)
    try:
        with command.make_context(program, list(arguments)) as context:
            code: Any = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        place = getattr(error, "ctx", None)
        path = place.command_path if place is not None else program
        raise ClientError(refused(error.format_message(), path, arguments)) from error
    return code if isinstance(code, int) else 0
