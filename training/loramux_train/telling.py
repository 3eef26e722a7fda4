"""What a run tells on the terminal: warnings of its data, what it wrote, and where that was pushed.

Takes the run's events; prints. Knows no loop.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from loramux_client import terminal
from loramux_train.config import Config
from loramux_train.data_source import open_folders
from loramux_train.outlook import Outlook
from loramux_train.output.destination import Destination
from loramux_train.output.push import Item, push
from loramux_train.session import Data, OpenData
from loramux_train.watchers import End, Watcher


def opened(quiet: bool) -> OpenData:
    """Opens the folders of the settings and tells what the survey warns of."""

    def opening(config: Config, outlook: Outlook, device: torch.device) -> Data:
        data = open_folders(config, outlook, device, quiet)
        for line in data.told.warnings:
            terminal.complain(f"loramux: warning: {line}")
        return data

    return opening


class Telling(Watcher):
    """Tells the end, and pushes where that is asked for. PushFailed where something did not get on the shelf."""

    def __init__(self, to: Destination | None, items: Sequence[Item] = ()) -> None:
        self._to, self._items = to, items

    def finished(self, end: End) -> None:
        for warning in end.warnings:
            terminal.complain(f"loramux: warning: {warning}")
        terminal.say(f"{end.saved.path}: {_size(end.saved.files):,} bytes")
        terminal.say(str(end.report))
        if self._to is None:
            return
        for item in self._items:
            pushed = push(item, self._to, end.layout)
            for warning in pushed.warnings:
                terminal.complain(f"loramux: warning: {warning}")
            terminal.say(pushed.ref)


def _size(files: tuple[Path, ...]) -> int:
    return sum(file.stat().st_size for file in files)
