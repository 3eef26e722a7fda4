"""Whatever a client sends, it gets an answer or a refusal that names what is wrong, and the server goes on."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from aftermath import Before, warm
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from living import Living
from random_messages import random_bytes, random_message

from loramux.v1 import adapter_service_pb2, generation_pb2, generation_service_pb2
from loramux_server import messages
from loramux_server.errors import InvalidRequest

METHODS = [
    method
    for file in (generation_service_pb2, adapter_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}
SECONDS = 20.0  # for a call: far above what any takes, so that a hang is seen
_AT_ONCE = 8


@pytest.fixture
async def living(tmp_path: Path) -> AsyncIterator[Living]:
    made = Living(tmp_path / "store", max_side=64, threads=2)
    await made.start()
    yield made
    await made.shut()


@pytest.mark.parametrize(
    "field,message",
    [
        ("timesteps", generation_pb2.GenerateRequest(timesteps=[5] * 201)),
        ("blend.entries", generation_pb2.GenerateRequest(blend={"entries": [{}] * 33})),
        ("negative_blend.entries", generation_pb2.GenerateRequest(negative_blend={"entries": [{}] * 33})),
        ("blend.entries[0].schedule", generation_pb2.GenerateRequest(blend={"entries": [{"schedule": [{}] * 33}]})),
        (
            "blend.entries[0].part_weights.blocks",
            generation_pb2.GenerateRequest(
                blend={"entries": [{"part_weights": {"blocks": {str(number): 1 for number in range(65)}}}]}
            ),
        ),
    ],
)
def test_more_than_any_request_has_is_refused_before_values_are_made_of_it(
    field: str, message: generation_pb2.GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "BlendEntry", lambda *_: pytest.fail("a value is made"))  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(InvalidRequest) as caught:
        messages.generation_request(message)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.timeout(300)
async def test_any_message_is_answered(living: Living) -> None:
    await warm(living.client, "ink", "glossy")
    before = Before(living)
    await answer_all(living, calls=500)
    await before.is_again()


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_any_message_is_answered_for_long(living: Living) -> None:
    await answer_all(living, calls=2000)
    before = Before(living)
    await answer_all(living, calls=20_000)
    await before.is_again()


async def answer_all(living: Living, calls: int) -> None:
    told, chance = Counter[tuple[str, str]](), random.Random(0)
    async with grpc.aio.insecure_channel(living.target) as channel:
        for start in range(0, calls, _AT_ONCE):
            planned = [(METHODS[(start + n) % len(METHODS)], chance.random()) for n in range(_AT_ONCE)]
            planned += [
                each for each in planned if each[0].name == "Generate"
            ]  # some have an id, under which they meet
            calls_made = (call(channel, method, random.Random(seed)) for method, seed in planned)
            for method, code in await asyncio.gather(*calls_made):
                told[method, code] += 1
    methods = {method for method, _ in told}
    assert methods == {method.name for method in METHODS}
    assert {code for _, code in told} >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}, told
    assert told["Generate", "OK"] and told["Generate", "INVALID_ARGUMENT"], told
    assert living.sample("loramux_repeated_requests_total", how="joined"), "none met under its id"


async def call(channel: grpc.aio.Channel, method: MethodDescriptor, chance: random.Random) -> tuple[str, str]:
    """One call of random messages; how it ended."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary"}
    stub = getattr(channel, kind[method.client_streaming, method.server_streaming])(path)
    messages = [random_bytes(_sendable(random_message(method.input_type, chance), chance), chance) for _ in range(3)]
    try:
        async with asyncio.timeout(SECONDS):
            if method.server_streaming:
                async for _ in stub(messages[0]):
                    pass
            else:
                await stub(iter(messages) if method.client_streaming else messages[0])
    except grpc.aio.AioRpcError as error:
        lost = "execute_batch" in (error.debug_error_string() or "")  # the client's, of a call that ended as it wrote
        assert error.code() not in NEVER or lost, (path, error.code(), error.details(), messages)
        assert lost or _reason(error), (path, error.details(), messages)
        assert "Traceback" not in (error.details() or "")
        return method.name, error.code().name
    return method.name, "OK"


def _sendable(message: Message, chance: random.Random) -> Message:
    """Of a request for pictures mostly one that is right but for two fields, often with an id that another may have,
    and none that draws for minutes."""
    if not isinstance(message, generation_pb2.GenerateRequest):
        return message
    if chance.random() < 0.8:
        said = chance.sample(fields := message.ListFields(), min(2, len(fields)))
        for field, _ in fields:
            if field not in [kept for kept, _ in said]:
                message.ClearField(field.name)
        message.prompt = message.prompt or "a red apple"
    if chance.random() < 0.5:
        message.request_id = f"request-{chance.randrange(100)}"
    message.steps = min(message.steps or 1, 2)
    message.num_images = min(message.num_images or 1, 2)
    del message.timesteps[4:]
    return message


def _reason(error: grpc.aio.AioRpcError) -> str:
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    return next((info.reason for detail in (status.details if status else ()) if detail.Unpack(info)), "")
