"""The table of samplers in the documents is what the code does."""

import re
from pathlib import Path

from loramux_server.engine.sampling import sigma_schedules, takes_timesteps
from loramux_server.requests import Sampler

TABLE = Path(__file__).resolve().parents[2] / "docs" / "samplers.md"


def test_the_documented_table_is_true() -> None:
    lines = re.findall(r"^\| `([\w-]+)` \| (.*?) \| (.*?) \| (yes|no) \| (yes|no) \|$", TABLE.read_text(), re.M)
    assert [name for name, *_ in lines] == [str(sampler) for sampler in Sampler]
    for name, _, schedules, timesteps, _ in lines:
        assert schedules.split(", ") == list(map(str, sigma_schedules(Sampler(name)))), name
        assert (timesteps == "yes") == takes_timesteps(Sampler(name)), name
