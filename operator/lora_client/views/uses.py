"""What can be done with a run's result, by where it is, its format, and how its base was held."""

from lora_client.errors import ClientError
from lora_client.views.helper_pod import Need, adapter_place, fetching, memory_on_cpu
from lora_client.views.resources import Object, name_of, part, text
from lora_client.views.serving import SERVERS, manifests
from lora_operator.model.wording import byte_size

_MERGED = "merged"


def is_merged(run: Object) -> bool:
    """Whether the result is a model, without an adapter beside it."""
    return text(run, "status", "artifact", "format") == _MERGED


def uses(run: Object) -> str:
    """The commands that take the result, and what each does."""
    name = name_of(run)
    try:
        adapter_place(run)
    except ClientError:
        return fetching(text(run, "status", "artifact", "uri"))
    found = [] if is_merged(run) else [f"lora ask {name} asks it"]
    found.append(f"lora pull {name} copies it")
    if _can_be_served(run):
        found.append(f"lora serve {name} prints how to serve it")
    return ", ".join(found)


def _can_be_served(run: Object) -> bool:
    try:
        manifests(run, SERVERS[0])
    except (ClientError, ValueError):
        return False
    return True


def require_askable(run: Object, need: Need) -> None:
    """Raises `ClientError` for what `ask` cannot answer with, before a pod takes a GPU to find out."""
    name = name_of(run)
    instead = f"lora serve {name} prints a server" if _can_be_served(run) else f"lora pull {name} copies it"
    if is_merged(run):
        raise ClientError(
            f"The result of {name} is a merged model (output.merge: Merged), from which no adapter can be taken off "
            f"to ask both: {instead}"
        )
    resolved = part(run, "status", "resolved")
    if need.gpu and resolved.get("sharded"):
        over = resolved.get("shardedOver") or "several"
        memory = memory_on_cpu(run)
        on_cpu = f", and without --gpu, ask takes {byte_size(memory)} of main memory" if memory else ""
        raise ClientError(
            f"--gpu is not available for {name} (its base was divided over {over} GPUs, and ask holds it on one): "
            f"{instead}{on_cpu}"
        )
