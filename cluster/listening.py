"""How Serve's processes listen: addresses, limits and certificates, which travel in the environment.

Serve gives a proxy none of an application's configuration, and starts it before there is one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any, Final, Self, get_type_hints

from tandem.limits import DEFAULT_LIMITS

_PREFIX: Final = "TANDEM_"
# Serve calls this in each process that will listen, before it does: a proxy, and in direct mode an ingress
# replica.
CALLBACK: Final = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tandem.cluster.ingress.edge.listeners.prepare"
}


@dataclass(frozen=True, slots=True)
class Listening:
    """The variables are the fields in capitals, after `TANDEM_`; see `Limits` for the units."""

    grpc_host: str = "127.0.0.1"  # HTTP's address is one of Serve's own options
    header_bytes: int = DEFAULT_LIMITS.header_bytes
    headers: int = DEFAULT_LIMITS.headers
    head_s: float = DEFAULT_LIMITS.head_s
    connections_per_address: int = DEFAULT_LIMITS.connections_per_address
    tls_cert: str = ""  # path of a PEM file, the chain of the server's certificate; "": no TLS
    tls_key: str = ""  # path of its key, a PEM file

    def environment(self) -> dict[str, str]:
        """The variables with which Serve's processes listen like this; those that have their defaults can be
        left out, but for the address."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        defaults = {each.name: each.default for each in fields(self) if each.name != "grpc_host"}
        own = {name: value for name, value in values.items() if defaults.get(name) != value}
        return {**{_PREFIX + name.upper(): str(value) for name, value in own.items()}, **CALLBACK}

    @classmethod
    def of_environment(cls) -> Self:
        """How this process is to listen. A variable that is missing has its default."""
        kinds = get_type_hints(cls)
        given: dict[str, Any] = {}
        for each in fields(cls):
            value = os.environ.get(_PREFIX + each.name.upper())
            if value is not None:
                given[each.name] = kinds[each.name](value)
        return cls(**given)
