"""The clock that chat templates read (`strftime_now`): it stands, so that rows have the same tokens on every day."""

from datetime import date, datetime, time
from typing import Any

_NAME = "strftime_now"


class Clock:
    """Stands at the beginning of `day`."""

    def __init__(self, day: date) -> None:
        self.day = day

    def put_into(self, template: str) -> None:
        """Have the next rendering of a template read this clock."""
        from transformers.utils import chat_template_utils  # noqa: PLC0415 - Transformers takes seconds to import

        if reads_clock(template):
            # Transformers gives templates nothing but data, so no variable can be the function. It keeps what it has
            # compiled, each template with functions of its own.
            utils: Any = chat_template_utils
            utils._compile_jinja_template(template).environment.globals[_NAME] = self._strftime_now

    def _strftime_now(self, form: str) -> str:
        return datetime.combine(self.day, time()).strftime(form)


def today() -> date:
    """By the local time, as templates have it without this clock."""
    return date.today()  # noqa: DTZ011


def reads_clock(template: str) -> bool:
    """Whether a template can write the date."""
    return _NAME in template
