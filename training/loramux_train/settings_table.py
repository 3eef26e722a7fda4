"""All settings as a table for people, which docs/training.md holds. Knows no model."""

from typing import Any

from pydantic_core import PydanticUndefined

from loramux_train.config import fields


def text() -> str:
    """Markdown: name, default and meaning of every setting; a list's settings are one row."""
    rows = [f"| `{name}` | {_shown(field)} | {field.description} |" for name, field in fields()]
    return "\n".join(["| setting | default | is |", "|---|---|---|", *rows])


def _shown(field: Any) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ", ".join(str(each) for each in default) or "none"
    return str(default)
