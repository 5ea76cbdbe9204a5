"""The roles that columns of a data set play, and which of them go together."""

from lora_trainer.spec.api import Rule, keys_among

COLUMN_ROLES = ("messages", "tools", "system", "prompt", "completion", "instruction", "input", "output", "text")
MOST_COLUMNS = 8
_OF_FORMAT = {
    "Messages": ["messages", "tools", "system"],
    "PromptCompletion": ["prompt", "completion", "tools", "system"],
    "Instruction": ["instruction", "input", "output", "system"],
    "Text": ["text"],
}

ROLES_EXIST = keys_among(
    COLUMN_ROLES,
    f"there is a role that does not exist: columns maps a role ({', '.join(COLUMN_ROLES[:-1])} or {COLUMN_ROLES[-1]}) "
    "to the name of your column, as in prompt: question",
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
    message="the roles do not fit together, or not with format: name those of one format only, which are messages, "
    "tools and system for Messages, prompt, completion, tools and system for PromptCompletion, instruction, input, "
    "output and system for Instruction, text for Text",
    broken=lambda dataset, has: (
        has("columns")
        and not any(
            dataset.format in {"Auto", name} and set(dataset.columns) <= set(roles)
            for name, roles in _OF_FORMAT.items()
        )
    ),
)
ROLES_DIFFER = Rule(
    cel="!has(self.columns) || self.columns.all(a, self.columns.all(b, a == b || self.columns[a] != self.columns[b]))",
    message="a column plays two roles: map each role to a column of its own",
    broken=lambda dataset, _: len(set(dataset.columns.values())) < len(dataset.columns),
)
