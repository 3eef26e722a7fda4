"""Where the commands of a page are run: a folder with the files that pages speak of, and a server that is up.

Takes commands and Python as pages show them; runs them in this process as `loramux` would, and says what went wrong.
What cannot be run here, or is run otherwise, stands in two tables with the reason.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from urllib.request import urlopen

import torch
from certificates import authority, sign
from pages import ROOT, Block, Command
from PIL import Image
from safetensors.torch import save_file

from loramux_client import Client, cli
from loramux_server.app import BUILTIN_FOLDER, Ready

LEFT: Mapping[str, str] = {
    "docker": "needs a container engine; `tests/deploy` reads the files",
    "grype": "downloads what is known of weak packages; `tests/deploy/test_sbom.py` reads the bill",
    "kubectl": "needs a cluster; `tests/deploy` reads the manifests",
    "pip install": "would change this environment; the extras that are named are looked up",
    "promtool": "is not everywhere; `tests/deploy/test_prometheus.py` runs the same where it is",
    "python -m loramux_train.builtin": "fetches pictures, and takes minutes",
    "loramux train run training/runs": "needs those pictures, and takes minutes; its settings are read",
    "trivy": "needs an image, and downloads what is known of weak packages",
}
"""Commands that are not run, by how they begin, each with the reason."""

OTHERWISE: Mapping[str, str] = {
    "loramux serve": "would not end; `loramux config check` says whether it would start",
    "loramux train run": "takes minutes; `--dry-run` reads settings and pictures, and plans",
    "loramux generate": "two steps are enough",
    "make": "`--dry-run` says what would be done; CI does it",
    "curl": "is not everywhere; Python asks for the same",
}
"""Commands that are run in another way, by how they begin, each with the reason."""

SAID = {"loramux adapters check": {0, 3}, "loramux train run out/style/train.toml --resume latest": {1}}
"""Exit statuses that are an answer, where it is not 0 alone: 3 is a verdict; 1 that dry runs left no checkpoint."""

_SHELL = re.compile(r"(?P<command>.*?)(?: 2>> (?P<complaints>\S+))?")
_OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>>"}
_STEPS = "2"


@dataclass(frozen=True, slots=True)
class Workshop:
    """folder: where commands run; store: the server's, which is at `at`."""

    folder: Path
    store: Path
    at: Ready

    @property
    def server(self) -> str:
        """HOST:PORT of gRPC."""
        return f"{self.at.host}:{self.at.grpc_port}"

    def run(self, command: Command) -> None:
        """Runs one command; AssertionError where it is not understood or fails."""
        words, complaints = self._read(command)
        with ExitStack() as stack:
            if complaints:
                stack.enter_context(redirect_stderr(stack.enter_context((self.folder / complaints).open("a"))))
            status = self._perform(words)
        allowed = next((said for start, said in SAID.items() if begins(words, start)), {0})
        assert status in allowed, f"{command} ends with status {status}"

    def python(self, block: Block) -> None:
        """Runs a block as a program of its own."""
        text = self._placed(block.text)
        lines = "\n" * (block.line - 1)  # so that errors name the line of the page
        exec(compile(lines + text, block.page, "exec"), {"__name__": "__main__"})

    def _read(self, command: Command) -> tuple[list[str], str | None]:
        shown = _SHELL.fullmatch(_without_comment(command.text))
        assert shown is not None
        words = [self._placed(word) for word in shlex.split(shown["command"])]
        assert not _OPERATORS & set(words), f"{command}: what a shell does with this is not known here"
        return words, shown["complaints"]

    def _perform(self, words: Sequence[str]) -> int:
        match words:
            case ["loramux", "serve", *options]:
                return cli.main(["config", "check", *options])
            case ["loramux", "train", "run", *options]:
                return cli.main(["train", "run", *options, *(["--dry-run"] if "--dry-run" not in options else [])])
            case ["loramux", "generate", *options]:
                return cli.main(["generate", *options, *(["--steps", _STEPS] if "--steps" not in options else [])])
            case ["loramux", *options]:
                return cli.main(options)
            case ["make", *targets]:
                return _shown(["make", "--dry-run", *targets, "INSTALLED=", f"PY={sys.executable}"], ROOT)
            case ["curl", "-s", address]:
                return 0 if urlopen(address).read() else 1
            case _:
                return _shown(["bash", "-c", shlex.join(words)], self.folder)

    def _placed(self, text: str) -> str:
        """With what is here in place of what pages show."""
        places = self._places()
        shown = "|".join(map(re.escape, places))
        return re.sub(rf"(?<![\w.-])(?:{shown})(?![\w.-])", lambda found: places[found[0]], text)

    def _places(self) -> dict[str, str]:
        return {
            "127.0.0.1:50051": self.server,
            "127.0.0.1:9090": f"{self.at.host}:{self.at.http_port}",
            "/backups": str(self.folder / "backups"),
            "/var/lib/loramux/store": str(self.store),
            "/var/lib/loramux": str(self.folder / "var"),
            "STORE": str(self.store),
            "NEW": str(self.folder / "new"),
        }


def begins(words: Sequence[str] | str, start: str) -> bool:
    """Whether a command begins with these words, of which the last may be the beginning of a path."""
    text = words if isinstance(words, str) else " ".join(words)
    return re.match(rf"{re.escape(start)}(?![\w-])", text) is not None


def table_entry(command: Command, table: Mapping[str, str]) -> str | None:
    """The longest beginning in a table that a command has."""
    return max((start for start in table if begins(command.text, start)), key=len, default=None)


def _without_comment(text: str) -> str:
    return re.sub(r"\s+#( .*)?$", "", text)


def _shown(command: Sequence[str], folder: Path) -> int:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="")
    return done.returncode


def furnish_shelf(server: str) -> None:
    """The adapters that pages speak of, beside the built-in ones."""
    uploads = (("my-style", ("noto", "ink")), ("other", ("noto", "glossy", "ink")), ("style", ("noto",)))
    with Client(server) as client:
        for name, files in uploads:
            for file in files:
                client.upload(BUILTIN_FOLDER / f"adapters/{file}.safetensors", name)
        client.update_adapter("ink", aliases={"prod": 1})


def tidy_shelf(server: str) -> None:
    """As every page finds it, whatever the one before did."""
    with Client(server) as client:
        client.undelete_adapter("my-style")
        client.pin_adapter("my-style")


def furnish(folder: Path, store: Path) -> None:
    """The files that pages speak of."""
    shutil.copy(BUILTIN_FOLDER / "adapters/ink.safetensors", folder / "my-style.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    word = torch.randn(1, 128, generator=torch.Generator().manual_seed(0)) / 50
    save_file({"emb_params": word}, folder / "cat.safetensors")
    _furnish_pictures(folder)
    _furnish_training(folder, word)
    _furnish_access(folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    with redirect_stdout(StringIO()):
        assert cli.main(["adapters", "backup", str(folder / "backups/shelf"), "--store", str(store)]) == 0


def _furnish_pictures(folder: Path) -> None:
    hole = Image.new("L", (64, 64))
    hole.paste(255, (16, 16, 48, 48))
    hole.save(folder / "hole.png")
    for place in ("pictures", "photos"):
        (folder / place).mkdir()
        for number, colour in enumerate(("red", "blue")):
            Image.new("RGB", (64, 64), colour).save(folder / place / f"{number}.png")
            (folder / place / f"{number}.txt").write_text(f"a {colour} ball")


def _furnish_training(folder: Path, word: torch.Tensor) -> None:
    (folder / "models").mkdir()
    (folder / "models/sd15").symlink_to(BUILTIN_FOLDER / "base")
    (folder / "train.toml").write_text('[data]\nfolders = ["photos"]\n')
    (folder / "out/style/embeddings").mkdir(parents=True)
    save_file({"<zib>": word}, folder / "out/style/embeddings/zib.safetensors")
    (folder / "out/style/train.toml").write_text('[data]\nfolders = ["pictures"]\n[output]\nfolder = "out/style"\n')


def _furnish_access(folder: Path) -> None:
    cert, key = sign(authority(), "loramux").write(folder, "cert")
    assert cert.name == "cert.pem"
    key.rename(folder / "key.pem")
    (folder / "loramux.toml").write_text("drain_seconds = 60\n")
    with (folder / "tokens.toml").open("a") as file, redirect_stderr(file), redirect_stdout(StringIO()):
        assert cli.main(["config", "token", "me", "--scope", "admin"]) == 0
