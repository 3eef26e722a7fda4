"""The tokenizer: CLIP's own byte-pair encoding, cut after its first merges.

Takes the merge list that the `open-clip-torch` wheel ships (MIT); gives a folder that `CLIPTokenizer.from_pretrained`
reads. CLIP's merges are sorted by frequency, so any prefix of the list is itself a valid encoding: common words stay
whole, rare ones split further. Knows no model.
"""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

MERGES = 8_000  # 1.97 tokens a word over emoji names; the embedding table stays at 2.2 MB in fp16
LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols() -> list[str]:
    """The 256 printable characters CLIP writes bytes as, in vocabulary order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def clip_merges(count: int = MERGES) -> list[str]:
    """The first `count` merges of CLIP, as "left right" lines."""
    spec = find_spec("open_clip")  # found, not imported: importing it would need torchvision
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the CLIP merges come from the wheel of open-clip-torch; install it (--no-deps)")
    packed = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    return lines[1 : 1 + count]  # the first line is a version comment


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Token to id, in CLIP's order: bytes, bytes that end a word, merges, the two specials."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(merge.split()) for merge in merges)]
    return {token: index for index, token in enumerate([*tokens, START, END])}


def write_tokenizer(folder: Path, merges: list[str]) -> int:
    """Write the tokenizer's files for these "left right" lines and return the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary(merges)
    specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        **specials,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "vocab.json").write_text(json.dumps(tokens, ensure_ascii=False, separators=(",", ":")))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
    return len(tokens)
