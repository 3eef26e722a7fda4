"""How much each holder of a token uses, against what the token allows.

Takes limits and what is about to be used; refuses what goes over, with the time until it would not. It knows no tokens,
no messages and no gRPC, and belongs to the event loop's thread; only `Drawn.hear` is called from whichever.

Rates are accounts that fill steadily up to a bound. What is asked for is granted while the account is not empty, and
may overdraw it: a request larger than the bound runs too, and is waited for afterwards. Of a request that ends early,
what was not drawn is given back.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from loramux_server.access import Holder
from loramux_server.errors import OverLimit
from loramux_server.requests import Event, Job, Queued, Stepped

_BURST_S = 10.0  # of calls that nobody made, kept for a burst
_MINUTE_S, _DAY_S = 60.0, 86400.0
_SOON_S = 2.0  # a guess, where what must end first is somebody's pictures

Clock = Callable[[], float]


class Account:
    """Fills by `per_second` up to `most`, from which it starts."""

    def __init__(self, per_second: float, most: float, clock: Clock) -> None:
        self._per_second, self._most, self._clock = per_second, most, clock
        self._held, self._at = most, clock()

    @property
    def empty_for(self) -> float:
        """Seconds until something is there; 0 where it is."""
        now = self._clock()
        self._held = min(self._most, self._held + (now - self._at) * self._per_second)
        self._at = now
        return 0.0 if self._held > 0 else max(1e-3, -self._held / self._per_second)

    def spend(self, amount: float) -> None:
        """Takes what was granted."""
        self._held -= amount

    def give_back(self, amount: float) -> None:
        """Of what was spent; the bound holds."""
        self._held += amount


class Drawn:
    """How much of a job the machine has worked for. It hears everything that happens to the job, when it happens: a
    client that reads slowly makes it no less."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pictures = [0.0] * job.num_images

    @property
    def share(self) -> float:
        """0 for a job that was refused, 1 for one that was finished."""
        return sum(self._pictures) / len(self._pictures)

    def hear(self, happened: Event) -> None:
        """One event more. A picture is always one step further than it says: that one may be under way."""
        match happened:
            case Queued():
                self._pictures = [1 / self._job.sampling.evaluations] * self._job.num_images
            case Stepped(index, step, total):
                self._pictures[index] = min(1.0, (step + 1) / total)
            case _:
                pass


class Meter:
    """What one holder uses."""

    def __init__(self, holder: Holder, clock: Clock = time.monotonic) -> None:
        self.limits = limits = holder.limits
        self._name = holder.name
        self._images = 0
        calls, cost, sent = limits.requests_per_second, limits.cost_per_minute, limits.upload_bytes_per_day
        self._calls = None if calls is None else Account(calls, max(1.0, calls * _BURST_S), clock)
        self._cost = None if cost is None else Account(cost / _MINUTE_S, cost, clock)
        self._sent = None if sent is None else Account(sent / _DAY_S, sent, clock)

    def call(self) -> None:
        """One call more.

        Raises:
            OverLimit: where there were too many lately.
        """
        self._draw("REQUEST_RATE", self._calls, 1.0, f"{self.limits.requests_per_second} calls a second")

    def upload(self, size: int) -> None:
        """So many bytes more of an adapter file.

        Raises:
            OverLimit: where there were too many in the last day.
        """
        self._draw("UPLOAD_BYTES", self._sent, size, f"{self.limits.upload_bytes_per_day} bytes a day")

    @contextmanager
    def drawing(self, job: Job) -> Generator[Drawn]:
        """While a job waits or runs; it costs what was drawn of it, as what it gives has heard.

        Raises:
            OverLimit: where its pictures are too many, or those before it cost too much.
        """
        most = self.limits.concurrent_images
        if most is not None and self._images + job.num_images > most:
            used = f"{self._images} of {most} pictures at once are taken, {job.num_images} more do not fit"
            raise OverLimit("CONCURRENT_IMAGES", self._name, f"{self._name}: {used}", _SOON_S)
        self._draw("COST_RATE", self._cost, cost_of(job), f"{self.limits.cost_per_minute} megapixel-steps a minute")
        self._images += job.num_images
        drawn = Drawn(job)
        try:
            yield drawn
        finally:
            self._images -= job.num_images
            if self._cost is not None:
                self._cost.give_back(cost_of(job) * (1 - drawn.share))

    def _draw(self, reason: str, account: Account | None, amount: float, allowed: str) -> None:
        if account is None:
            return
        if wait := account.empty_for:
            raise OverLimit(reason, self._name, f"{self._name}: {allowed} are allowed and used up", wait)
        account.spend(amount)


class Meters:
    """A meter for each holder, kept while its limits stay the same."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[str, Meter] = {}

    def of(self, holder: Holder) -> Meter:
        """The holder's."""
        meter = self._meters.get(holder.name)
        if meter is None or meter.limits != holder.limits:
            meter = self._meters[holder.name] = Meter(holder, self._clock)
        return meter


def cost_of(job: Job) -> float:
    """Megapixel-steps: pixels times evaluations of the UNet's rows, over all its pictures."""
    rows = 2 if job.guided else 1
    return job.width * job.height / 1e6 * job.sampling.evaluations * rows * job.num_images
