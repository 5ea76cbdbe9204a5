"""What the Hub's client raises, as the trainer's sentences."""

import re
from collections.abc import Mapping
from typing import Any

from lora_trainer.errors import (
    ConfigError,
    StorageError,
    TrainerError,
    TransientError,
    discreet,
    one_sentence,
    storage_error,
)
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import HubUri
from lora_trainer.storage.network import LONGEST_PAUSE_S, refused_certificate
from lora_trainer.storage.roles import Role, or_in_environment, unreachable

LONGEST_RESET_S = 301
"""The Hub counts requests in windows of five minutes; a second for what it rounds off."""
_ABSENT = frozenset({"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"})
_FULL = re.compile(r"\bstorage (limit|patterns|quota)|\bquota\b", re.IGNORECASE)
"""What the Hub says with 403 where an account's storage is used up: to a token that may write."""
_REFUSED = frozenset({400, 402, 413, 422})
_LONGEST = 200


def explain_hub(error: Exception, uri: HubUri, role: Role) -> TrainerError:
    """The sentence of a failed call. The HTTP status, which the library may wrap, is sought in the chain of causes."""
    if isinstance(error, TrainerError):
        return error
    where = f"{role.field} is {uri}"
    status = _status(error)
    right = "write to" if role is Role.OUTPUT else "read"
    secret = f"name in {role.section}.secretRef a Secret whose HF_TOKEN may {right} it{or_in_environment('HF_TOKEN')}"
    if status == 404 or any(type(item).__name__ in _ABSENT for item in _chain(error)):
        # To those who may not know of it, the Hub calls a private repository absent: a misspelt name is more likely.
        return role.missing(
            f"{where}: the Hub knows no such repository, revision or file; check the spelling, and for a private one "
            f"{secret}"
        )
    refused = _refused_output(status, _said(error), where) if role is Role.OUTPUT else None
    if refused is not None:
        return refused
    if status in (401, 403):
        why = "; " if role is Role.OUTPUT else ", the repository is gated or private; accept its licence, and "
        return role.denied(f"{where}: the Hub answered {status}{_said(error)}{why}{secret}")
    return _of_this_side(error, where) or _unavailable(error, status, where, role)


def _refused_output(status: int | None, said: str, where: str) -> StorageError | None:
    """What a Hub refuses that knows the token and may be asked again; None for anything else."""
    if status == 412:
        message = f"{where}: another upload came first; the next attempt looks for room again"
        return StorageError(message, Reason.UPLOAD_FAILED)
    if status == 507 or (status in {403, *_REFUSED} and _FULL.search(said)):
        message = f"{where}: the Hub has no room for it, {status}{said}; free space or raise the quota there"
        return StorageError(message, Reason.STORAGE_FULL)
    if status in _REFUSED:
        return StorageError(f"{where}: the Hub refuses what is uploaded, {status}{said}", Reason.UPLOAD_FAILED)
    return None


def _of_this_side(error: Exception, where: str) -> TrainerError | None:
    """What failed before the Hub was asked, or with what it had answered."""
    if any(type(item).__name__ == "OfflineModeIsEnabled" for item in _chain(error)):
        return ConfigError(f"{where}: the Hub may not be asked (HF_HUB_OFFLINE); choose another output, or allow it")
    storage = _storage(error)
    return storage_error(storage, "the Hub's cache (HF_HOME)") if storage is not None else None


def _unavailable(error: Exception, status: int | None, where: str, role: Role) -> TransientError:
    answered = f"the Hub answered {status}{_said(error)}"
    if status == 429:
        return TransientError(
            f"{where}: {answered}, its limit of requests is used up; wait, or name in {role.section}.secretRef a "
            f"Secret with an HF_TOKEN, for which there is a larger one{or_in_environment('HF_TOKEN')}"
        )
    detail = answered if status else f"the Hub cannot be reached ({one_sentence(error)[:_LONGEST]})"
    unavailable = f"{detail}; {unreachable(role, 'HF_ENDPOINT', 'config.hubEndpoint')}"
    return TransientError(f"{where}: {refused_certificate(error) or unavailable}")


def retry_after_s(error: Exception) -> float | None:
    """The pause in seconds that the Hub asks for, if it is short enough to be waited for."""
    for item in _chain(error):
        response = getattr(item, "response", None)
        headers = getattr(response, "headers", None)
        if headers is None:
            continue
        if getattr(response, "status_code", None) == 429 and (reset_s := _reset_s(headers)) is not None:
            return reset_s if reset_s <= LONGEST_RESET_S else None
        text = headers.get("Retry-After", "")
        if text.isdigit() and int(text) <= LONGEST_PAUSE_S:
            return float(text)
    return None


def _reset_s(headers: Mapping[str, str]) -> float | None:
    """Until there is a new limit of requests; None where that is not what is used up."""
    # Public by its documentation, and loaded by what failed.
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # noqa: PLC0415

    limit = parse_ratelimit_headers(headers)
    return limit.reset_in_seconds + 1.0 if limit is not None and limit.remaining == 0 else None


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _status(error: Exception) -> int | None:
    for item in _chain(error):
        response: Any = getattr(item, "response", None)
        if isinstance(getattr(response, "status_code", None), int):
            return int(response.status_code)
    return None


def _said(error: Exception) -> str:
    """The Hub's own words, in brackets; empty where it has none."""
    for item in _chain(error):
        headers = getattr(getattr(item, "response", None), "headers", None) or {}
        lines = [str(getattr(item, "server_message", None) or "")]
        lines += [str(value) for name, value in headers.items() if name.lower() == "x-error-message"]
        text = discreet(" ".join(next(filter(None, lines), "").split())).rstrip(". ")
        if text:
            return f" ({text[:_LONGEST]})"
    return ""


def _storage(error: Exception) -> OSError | None:
    for item in _chain(error):
        if type(item) in (OSError, PermissionError) and isinstance(item, OSError) and item.filename is not None:
            return item
        if isinstance(item, OSError) and item.errno in (28, 122):
            return item
    return None
