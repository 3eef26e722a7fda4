"""A transfer that stops half way until it may go on."""

import asyncio
import threading


class Pause:
    """A progress callback of an upload or a download. reached: it is past its half; told: bytes so far."""

    def __init__(self) -> None:
        self.reached, self.go_on, self.told = asyncio.Event(), threading.Event(), list[int]()
        self._loop = asyncio.get_running_loop()

    def __call__(self, so_far: int, total: int) -> None:
        self.told.append(so_far)
        if so_far > total // 2 and not self.go_on.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self.go_on.wait(120)
