"""All settings as a table for people, which docs/training.md holds. Knows no model."""

from typing import Any

from pydantic_core import PydanticUndefined

from loramux_train.config import Config, fields, section_of


def text() -> str:
    """Markdown: name, default and meaning of every setting; a list's settings are one row."""
    rows = [f"| `{name}` | {_shown(name, field)} | {field.description} |" for name, field in fields()]
    return "\n".join(["| setting | default | is |", "|---|---|---|", *rows])


def _shown(name: str, field: Any) -> str:
    default = field.default
    if default is PydanticUndefined:
        optional = _optional(name)
        return f"required with `{optional}`" if optional else "required"
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ", ".join(str(each) for each in default) or "none"
    return str(default)


def _optional(name: str) -> str:
    """The section that a setting is in, if there need be none."""
    model: Any = Config
    sections = name.split(".")[:-1]
    for end, section in enumerate(sections, start=1):
        field = model.model_fields[section]
        if field.default is None:
            return ".".join(sections[:end])
        model = section_of(field.annotation)
    return ""
