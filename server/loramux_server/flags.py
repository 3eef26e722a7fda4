"""Options of the command line, one for each setting.

Takes the settings' names, types and descriptions; gives a model that the command line fills, None for what was not
said. It knows no values, and what is wrong with one is for the settings to say.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, SkipValidation, create_model
from pydantic.fields import FieldInfo

from loramux_server.settings import Settings


def _option(field: FieldInfo) -> tuple[Any, Any]:
    default = field.default
    shown = default is not None and default is not False and field.default_factory is None
    text = f"{field.description} [default: {default}]" if shown else field.description
    return Annotated[field.annotation | None, SkipValidation], Field(default=None, description=text)  # type: ignore[operator]


if TYPE_CHECKING:

    class Flags(BaseModel):
        """An attribute for every setting."""

else:
    Flags = create_model("Flags", **{name: _option(field) for name, field in Settings.model_fields.items()})


def given(flags: Flags | None) -> dict[str, Any]:
    """What was said."""
    return {} if flags is None else {name: value for name, value in flags if value is not None}
