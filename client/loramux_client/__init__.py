"""Typed clients and the command line of LoRAMux; needs neither the server nor torch.

with Client("127.0.0.1:50051") as client:
    generation = client.generate("a red apple", adapters={"ink": 0.8}, seed=7)
    generation.images[0].save("apple.png")
"""

from loramux_client.aio import AsyncClient
from loramux_client.channel import tls_credentials
from loramux_client.client import Client
from loramux_client.errors import LoraMuxClientError
from loramux_client.pictures import Sizes, Use

__all__ = ["AsyncClient", "Client", "LoraMuxClientError", "Sizes", "Use", "tls_credentials"]
