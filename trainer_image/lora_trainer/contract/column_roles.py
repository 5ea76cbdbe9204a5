"""The roles that columns of a data set play, and which of them go together."""

from collections.abc import Mapping

from lora_trainer.contract.api import Rule
from lora_trainer.contract.fields import Reader

COLUMN_ROLES = ("messages", "tools", "system", "prompt", "completion", "instruction", "input", "output", "text")
MOST_COLUMNS = 8
_OF_FORMAT = {
    "Messages": ["messages", "tools", "system"],
    "PromptCompletion": ["prompt", "completion", "tools", "system"],
    "Instruction": ["instruction", "input", "output", "system"],
    "Text": ["text"],
}

ROLES_EXIST = Rule(
    cel=f"self.all(r, r in {list(COLUMN_ROLES)})",
    message="there is a role that does not exist: columns maps a role (messages, tools, system, prompt, completion, "
    "instruction, input, output or text) to the name of your column, as in prompt: question",
)
ROLES_GO_TOGETHER = Rule(
    cel=" || ".join(
        [
            "!has(self.columns)",
            *(
                f"((self.format == 'Auto' || self.format == '{name}') && self.columns.all(r, r in {roles}))"
                for name, roles in _OF_FORMAT.items()
            ),
            f"self.columns.exists(r, !(r in {list(COLUMN_ROLES)}))",
        ]
    ),
    shown="the roles do not fit together with format {self.format}: name those of one format only, which are messages, "
    "tools and system for Messages, prompt, completion, tools and system for PromptCompletion, instruction, input, "
    "output and system for Instruction, text for Text",
    message="name the roles of one format only, and those of dataset.format if it is not Auto",
    broken=lambda dataset: (
        bool(dataset.columns)
        and not any(
            dataset.format in {"Auto", name} and set(dataset.columns) <= set(roles)
            for name, roles in _OF_FORMAT.items()
        )
    ),
)


def read_columns(section: Reader, key: str) -> Mapping[str, str]:
    """Columns by their roles, empty where none are named; what is wrong is added to the section's problems."""
    columns = section.strings(key, keys=COLUMN_ROLES, most=MOST_COLUMNS)
    roles: dict[str, list[str]] = {}
    for role, column in columns.items():
        roles.setdefault(column, []).append(role)
    for column, players in roles.items():
        if len(players) > 1:
            rule = f"must not be the column of both {' and '.join(players)}: map each role to a column of its own"
            section.complain(key, column, rule)
    return columns
