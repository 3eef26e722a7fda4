"""Whatever an error says, its status arrives: code, reason and the first field at fault."""

import base64
import inspect
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, get_type_hints
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_client import AsyncClient
from loramux_client.errors import DeadlineExceeded
from loramux_server import errors, statuses
from loramux_server.interceptors import Interceptor
from loramux_server.metrics import Metrics
from loramux_server.statuses import LEFT_OUT, MAX_BYTES, Failure, failure_of
from loramux_store import errors as shelf

LETTERS = ("x", "%", "\n", "\0", "é", "猫", "😀", "\ud83d")  # the last is none, but JSON may hold it
HARMLESS = " " + "".join(chr(byte) for byte in range(0x21, 0x7F) if chr(byte) != "%")


def tree(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for branch in root.__subclasses__():
        yield from tree(branch)


EVERY = [*tree(errors.LoraMuxError), *tree(shelf.StoreError), ValueError]

texts = st.text() | st.builds(str.__mul__, st.sampled_from(LETTERS), st.integers(0, 30_000))
numbers = st.integers(0, 1 << 63)
violations = st.lists(st.builds(errors.Violation, texts, texts), min_size=1, max_size=60).map(tuple)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: numbers,
    float: st.floats(0, 1e9),
    object: texts | numbers,
    tuple[errors.Violation, ...]: violations,
    Iterable[str]: st.lists(texts, max_size=4),
    Mapping[str, str] | None: st.none() | st.dictionaries(texts, texts, max_size=12),
    str | None: st.none() | texts,
}


def any_error(kind: type[Exception]) -> st.SearchStrategy[Exception]:
    """Of this kind. Reasons of the server's own errors are words of its code."""
    init = kind.__init__
    if not inspect.isfunction(init):
        return texts.map(kind)
    kinds = {name: each for name, each in get_type_hints(init).items() if name != "return"}
    asked = {name: BY_TYPE[each] for name, each in kinds.items()}
    if "reason" in asked and issubclass(kind, errors.LoraMuxError):
        asked["reason"] = st.from_regex(r"[A-Z_]{1,63}", fullmatch=True)
    return st.builds(kind, **asked)


def on_the_wire(failure: Failure) -> int:
    """Bytes of the status's two values, where binary ones travel as text."""
    details = base64.b64encode(failure.status.SerializeToString())
    return len(quote(failure.status.message, safe=HARMLESS)) + len(details)


def opened(status: Any) -> SimpleNamespace:
    """The details of a google.rpc.Status."""
    found = SimpleNamespace(info=error_details_pb2.ErrorInfo(), bad=error_details_pb2.BadRequest())
    for detail in status.details:
        _ = detail.Unpack(found.info) or detail.Unpack(found.bad)
    return found


def begins(told: str, text: str) -> bool:
    """Whether it is the text, or the text's beginning."""
    text = text.encode(errors="backslashreplace").decode()
    return told == text or (told.endswith("...") and len(told) > 50 and text.startswith(told[:-3]))


def check(error: Exception) -> None:
    failure = failure_of(error)
    found = opened(failure.status)
    assert on_the_wire(failure) <= MAX_BYTES
    assert found.info.domain == "loramux" and found.info.reason == failure.reason
    assert failure.reason == getattr(error, "reason", failure.reason)
    assert "\N{REPLACEMENT CHARACTER}" not in failure.status.message
    if isinstance(error, errors.InvalidRequest):
        told = found.bad.field_violations
        assert begins(told[0].field, error.violations[0].field)
        assert begins(told[0].description, error.violations[0].description)
        assert len(told) + int(found.info.metadata[LEFT_OUT] or 0) == len(error.violations)
    if isinstance(error, shelf.InvalidArgument):
        (only,) = found.bad.field_violations
        assert begins(only.field, error.field) and begins(only.description, str(error))
    if isinstance(error, shelf.Refused):
        told = len(found.info.metadata) - (LEFT_OUT in found.info.metadata)
        assert told + int(found.info.metadata[LEFT_OUT] or 0) >= 1 or not error.detail


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_status_fits_whatever_is_said(kind: type[Exception]) -> None:
    settings(max_examples=12)(given(any_error(kind))(check))()


@pytest.mark.long
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_status_fits_whatever_is_said_for_long(kind: type[Exception]) -> None:
    settings(max_examples=300)(given(any_error(kind))(check))()


@pytest.mark.parametrize("letter", LETTERS)
def test_many_fields_at_fault_are_told_as_far_as_there_is_room(letter: str) -> None:
    for size in (1, 20, 63, 100, 250, 10_000):
        check(errors.InvalidRequest((errors.Violation(letter * size, letter * size),) * 50))
        check(shelf.Refused(letter * size, letter * size, {f"{n}{letter * size}": letter * size for n in range(50)}))
        check(errors.OverLimit("REQUEST_RATE", letter * size, letter * size, 1e9))


def test_what_fits_is_told_whole() -> None:
    faults = tuple(errors.Violation(f"blend.entries[{n}].weight", "is 9, expected -8 to 8") for n in range(20))
    failure = failure_of(errors.InvalidRequest(faults))
    found = opened(failure.status)
    told = [errors.Violation(each.field, each.description) for each in found.bad.field_violations]
    assert tuple(told) == faults and LEFT_OUT not in found.info.metadata
    assert failure.status.message == str(errors.InvalidRequest(faults))


class Failing(grpc.GenericRpcHandler):
    """Any unary call fails with an error that the test puts here; the first `times` calls do, the others are answered
    with nothing."""

    error: Exception

    def __init__(self) -> None:
        self.asked, self.times = 0, 1 << 30

    def service(self, handler_call_details: Any) -> Any:
        async def fail(request: bytes, context: Any) -> bytes:
            self.asked += 1
            if self.asked <= self.times:
                raise self.error
            return b""

        return grpc.unary_unary_rpc_method_handler(fail)


@pytest.fixture
async def failing() -> AsyncIterator[Any]:
    """The handler, where it is, and a method as a client has it."""
    handler = Failing()
    server = grpc.aio.server(interceptors=[Interceptor(Metrics())], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        yield SimpleNamespace(handler=handler, target=target, call=channel.unary_unary("/any.Service/Fail"))
    await server.stop(None)


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("size", [20_000, 9_000, 300])
async def test_a_refusal_arrives_with_its_reason(failing: Any, letter: str, size: int) -> None:
    said = letter * size
    for error in (
        errors.InvalidRequest((errors.Violation(said, said),) * 30),
        errors.OverLimit("REQUEST_RATE", said, said, 5.0),
        shelf.NotFound(said, said),
        shelf.Refused("incomplete_pair", said, {f"{n}": said for n in range(8)}),
        shelf.InvalidArgument(said, said, said),
        shelf.Changed(said, said, said),
    ):
        failing.handler.error = error
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await failing.call(b"")
        status = rpc_status.from_call(caught.value)  # raises where the message is not that of the details
        assert status is not None, (error, caught.value.code(), caught.value.details())
        assert caught.value.code() is failure_of(error).code
        assert opened(status).info.reason == failure_of(error).reason


async def test_a_client_that_tries_again_by_itself_waits_as_long_as_it_is_told(failing: Any) -> None:
    """The client's own pause would outlast the call's deadline; what is told does not."""
    failing.handler.error, failing.handler.times = errors.Draining("stops"), 1
    policy = {"maxAttempts": 2, "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}
    policy |= {"initialBackoff": "3600s", "maxBackoff": "3600s"}
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    async with grpc.aio.insecure_channel(failing.target, [("grpc.service_config", config)]) as channel:
        assert await channel.unary_unary("/any.Service/Fail")(b"", timeout=60) == b""
    assert failing.handler.asked == 2


async def test_the_typed_client_does_not_come_back_before(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own pause of 0.2 s would bring it back before its deadline."""
    monkeypatch.setattr(statuses, "_ELSEWHERE_S", 3600.0)
    failing.handler.error = errors.Draining("stops")
    async with AsyncClient(failing.target, timeout=3) as client:
        with pytest.raises(DeadlineExceeded):
            await client.get_adapter("ink")
    assert failing.handler.asked == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.Draining(""), "1000"),
        (errors.Busy("", 7.4), "7000"),
        (errors.OverLimit("COST_RATE", "", "", 1e9), "2147483647"),  # an int32, or clients take it for "never"
        (errors.TooLate("", 7.0), None),
        (shelf.DiskFailed("", ""), None),
    ],
)
def test_who_is_told_a_time_is_told_it_twice(error: Exception, told: str | None) -> None:
    assert dict(failure_of(error).trailers).get("grpc-retry-pushback-ms") == told
