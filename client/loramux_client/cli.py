"""The command line `loramux`.

Takes: arguments. Gives: an exit status: 0 done, 1 refused or failed (one clear line on stderr), 2
misused, 130 interrupted. Does not know what the commands do; serve, demo, bench, train and config
come from other packages, where they are installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from cyclopts import App, CycloptsError

from loramux_client import terminal
from loramux_client.commands.adapter_tiers import adapters
from loramux_client.commands.generate import generate
from loramux_client.commands.installed import ExtraMissing, installed_commands
from loramux_client.commands.server import healthcheck, info
from loramux_client.errors import LoraMuxClientError

INTERRUPTED = 130  # what shells report for a command ended by Ctrl-C


def build_app() -> App:
    """The command line, with whatever commands are installed."""
    app = App(
        name="loramux",
        help="Pictures from Stable Diffusion, every request with its own blend of adapters.",
        version=_version,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for command in (generate, info, healthcheck):
        app.command(command)
    for group in (adapters, *installed_commands()):
        app.command(group)
    return app


def _version() -> str:
    try:
        return version("loramux")
    except PackageNotFoundError:
        return "unknown (not installed)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status."""
    tokens = sys.argv[1:] if arguments is None else list(arguments)
    try:
        result = build_app()(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as misuse:
        terminal.complain(f"loramux: {' '.join(str(misuse).split())}")
        return 2
    except LoraMuxClientError as refusal:
        first, *rest = refusal.lines()
        terminal.complain(f"loramux: {first}")
        for line in rest:
            terminal.complain(line)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough, as in `loramux ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as failure:
        about = f"{failure.filename}: {failure.strerror}" if failure.filename and failure.strerror else failure
        terminal.complain(f"loramux: {about}")
        return 1
    except (ExtraMissing, UnicodeDecodeError) as failure:
        terminal.complain(f"loramux: {failure}")
        return 1
    except KeyboardInterrupt:
        terminal.complain("loramux: interrupted")
        return INTERRUPTED
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
