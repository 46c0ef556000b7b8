"""Clients of a Tandem server's gRPC port."""

from tandem.client.asynchronous import AsyncClient
from tandem.client.blocking import Client

__all__ = ["AsyncClient", "Client"]
