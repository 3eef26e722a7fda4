"""Draws one picture with a blend of adapters, and tells how far it is.

usage: generate.py PROMPT FILE        needs: pip install loramux
"""

import sys

from loramux_client import Client, LoraMuxClientError
from loramux_client.pictures import ImageReady, Step
from loramux_client.settings import read_settings


def main(prompt: str, file: str) -> None:
    with Client(read_settings().server) as client:
        names = [adapter.name for adapter in client.list_adapters()]
        print(f"on the shelf: {', '.join(names)}")
        for event in client.stream(prompt, adapters=dict.fromkeys(names[:2], 0.6), steps=8, seed=7):
            match event:
                case Step():
                    print(f"step {event.step} of {event.total}")
                case ImageReady():
                    event.image.save(file)
                    print(f"wrote {file}")
                case _:
                    pass


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except LoraMuxClientError as refusal:
        sys.exit("\n".join(refusal.lines()))
