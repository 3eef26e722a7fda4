"""Freed memory stays in the process, on every thread."""

import platform
import subprocess
import sys

import pytest

FORWARD = """
import resource, sys, threading
import numpy as np
from loramux_server import memory

def forward():
    blocks = [np.ones(size << 20) for size in (1, 1, 1, 1, 10, 10)]  # 8 MB, and more than a heap of 64

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    forward()
    before = faults()
    for _ in range(5):
        forward()
    print(faults() - before)

if sys.argv[1] == "kept":
    memory.keep_freed()
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FORWARD, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that hands memory back")
def test_a_thread_finds_the_pages_that_it_freed() -> None:
    assert page_faults("kept") < 100 < 10_000 < page_faults("given back")
