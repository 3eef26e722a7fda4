"""A client, in a process of its own, that asks, hears the first event and is gone, again and again.

usage: vanishing_client.py TARGET TIMES
"""

import sys

import grpc

from loramux.v1 import generation_pb2, generation_service_pb2_grpc


def main(target: str, times: int) -> None:
    blend = generation_pb2.Blend(entries=[generation_pb2.BlendEntry(adapter="ink")])
    request = generation_pb2.GenerateRequest(prompt="a dog", steps=150, blend=blend)
    for _ in range(times):
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            next(iter(generation_service_pb2_grpc.GenerationServiceStub(channel).GenerateStream(request)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
