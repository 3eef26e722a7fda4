"""What every section of a run's settings is: a frozen value that takes nothing it does not know, and no word for a
number or a truth value."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
