"""Keeps freed memory in the process, so that the next forward finds its pages there.

Takes nothing; gives nothing. It knows no tensor. glibc hands large blocks back to the system when they are freed; a
forward on the CPU, whose activations are freed at once, then has to have every page cleared again and again.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT = 1 << 30  # bytes at most: several times what a forward of Stable Diffusion 1.5 has at once
_LARGEST_ONCE = 32 << 20  # bytes of a block that is taken from them, where glibc is older than 2.35


def keep_freed() -> None:
    """For the whole process, with one arena for all threads; does nothing without glibc. Call it before torch works.

    One arena, because those of other threads than the first are cut into pieces of 64 MB: what is larger would be
    handed back all the same.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    if not mallopt(_MMAP_THRESHOLD, _KEPT):
        mallopt(_MMAP_THRESHOLD, _LARGEST_ONCE)
