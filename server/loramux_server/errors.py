"""Everything that can go wrong with a request, as one tree. It knows no gRPC; `statuses` maps it.

    LoraMuxError
    ├── InvalidRequest      fields outside their range, every one of them named
    ├── Incompatible        an adapter that does not fit the base, or a blend that can never fit the pool
    ├── PinTooLarge         pins would leave too little room for requests
    ├── Busy                the queue is full
    ├── TooLate             it could not be done before its deadline
    ├── OverLimit           a caller has used up what its token allows for now
    ├── Unknown             a call without a token, or with one that is nobody's
    ├── Forbidden           a token that is not good for the call
    ├── Draining            the server is stopping
    ├── UploadStalled       no message of an upload came for too long
    ├── PictureFailed       one picture became non-finite or its adapter could not be loaded
    │   └── OutOfMemory     it does not fit into device memory, not even alone
    ├── BadBase             a folder or file that is no Stable Diffusion base (at start)
    └── BadSetting          a setting that does not suit the base or the device (at start)

What the shelf refuses is `loramux_store.errors`.
"""

from dataclasses import dataclass


class LoraMuxError(Exception):
    """Root of the tree. The message is written for the person who sent the request."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path (`blend.entries[2].weight`) and what was found and expected."""

    field: str
    description: str


class InvalidRequest(LoraMuxError):
    """Fields outside their range."""

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class Incompatible(LoraMuxError):
    """An adapter that does not fit the base, or a blend that no pool of this server holds."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class OverLimit(LoraMuxError):
    """A caller has used up what its token allows. reason: which limit, UPPER_SNAKE; retry_after: seconds."""

    def __init__(self, reason: str, caller: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.caller = caller
        self.retry_after = retry_after


class Unknown(LoraMuxError):
    """Nobody knows who calls. reason: why, UPPER_SNAKE."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Forbidden(LoraMuxError):
    """The caller's token is not good for this."""

    def __init__(self, caller: str, scope: str, method: str) -> None:
        super().__init__(f"{method} needs the scope {scope}, which the token of {caller} does not have")
        self.scope = scope


class PinTooLarge(LoraMuxError):
    """Pins would take more than their share of a tier. needed: by this one, in words; held: by the others; most: by
    all together."""

    def __init__(self, reference: str, needed: str, held: int, most: int) -> None:
        super().__init__(
            f"adapter: {reference} has {needed}, and other pins hold {held}; expected at most {most} together, so that "
            "requests find room"
        )
        self.held = held
        self.most = most


class Busy(LoraMuxError):
    """The queue is full; worth trying again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLate(LoraMuxError):
    """The deadline comes before the pictures could be done; `seconds` is how long they would take, at least."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Draining(LoraMuxError):
    """The server is stopping and takes nothing new."""


class UploadStalled(LoraMuxError):
    """No message of an upload came for too long; another call may go on with it."""


class PictureFailed(LoraMuxError):
    """A picture that could not be finished through no fault of the request's fields."""


class OutOfMemory(PictureFailed):
    """What a picture needs does not fit into device memory, not even alone. A smaller one may fit."""


class BadBase(LoraMuxError):
    """A folder or file that is no Stable Diffusion base, or not the whole of one."""


class BadSetting(LoraMuxError):
    """A setting that does not suit the base or the device."""
