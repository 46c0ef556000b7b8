"""Files of all replicas of an ingress: the one that is asked for a file need not be the one that made it."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayError

from tandem.cluster.ingress.files import FileStore
from tandem.cluster.serve_compat.spare_worker import prepared_by
from tandem.errors import Unavailable


class SharedFiles:
    """An actor's files. It ends with the replica that started it, and the next call starts another: what was
    there has to be translated again."""

    def __init__(self, application: str) -> None:
        self._name = f"tandem-files:{application}"
        self._store: Any = None

    async def put(self, data: bytes) -> str:
        return str(await self._call("put", data))

    async def get(self, name: str) -> bytes | None:
        found: bytes | None = await self._call("get", name)
        return found

    async def _call(self, method: str, argument: bytes | str) -> Any:
        try:
            if self._store is None:
                self._store = await asyncio.to_thread(self._start)
            return await getattr(self._store, method).remote(argument)
        except RayError as error:
            self._store = None
            raise Unavailable("the store of files is gone: translate the file again") from error

    def _start(self) -> Any:
        actor = ray.remote(FileStore).options(
            name=self._name, get_if_exists=True, num_cpus=0, runtime_env=prepared_by("")
        )
        return actor.remote()
