"""A tensor-parallel group on this machine, without a cluster: rank 0 in this process, a child process
for each other rank. In a cluster the ranks are actors, see cluster/replicas/decoder.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tandem.errors import InternalError
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.follower import Follower

_EXIT_S = 30.0  # for a child to end by itself after the group is closed
_POLL_S = 0.05


class LocalGroup:
    """The child processes; `group` is rank 0's end. Raises InternalError if a child fails to start; it says
    why on stderr."""

    def __init__(self, config: EngineConfig) -> None:
        self.group = Group()
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-group-")
        # A fresh interpreter rather than multiprocessing: the caller's main module is not run again.
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", "tandem.workers.local_group", json.dumps(asdict(config)), str(rank),
                 self._folder.name],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for rank 0, which ends the others
            )
            for rank in range(1, config.tensor_parallel_size)
        ]  # fmt: skip
        try:
            self._wait_for_children()
            self.group = _meet(config, 0, self._folder.name)
        except BaseException:
            self.close(kill=True)
            raise

    def _wait_for_children(self) -> None:
        """Returns when each is about to meet the others. Meeting earlier, rank 0 would wait for a child that
        has died."""
        for rank, child in enumerate(self._children, start=1):
            while not _arrival(self._folder.name, rank).exists():
                if child.poll() is not None:
                    raise InternalError(f"rank {rank} ended with status {child.returncode} before it began")
                time.sleep(_POLL_S)

    def close(self, *, kill: bool = False) -> None:
        """Waits for the children to end, as they do after the engine is closed; kills those that do not, or,
        if `kill`, all."""
        for child in self._children:
            if kill:
                child.kill()
            try:
                child.wait(_EXIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.group.close()  # if the engine could not
        self._folder.cleanup()


def _arrival(folder: str, rank: int) -> Path:
    """The file that a child creates when it is about to meet the others."""
    return Path(folder) / f"rank-{rank}"


def _meet(config: EngineConfig, rank: int, folder: str) -> Group:
    meeting = f"file://{Path(folder) / 'meeting'}"
    return Group.create(rank, config.tensor_parallel_size, meeting, config.torch_device(rank))


def _run_child(config: EngineConfig, rank: int, folder: str) -> None:
    _arrival(folder, rank).touch()
    Follower(config, _meet(config, rank, folder)).run()


if __name__ == "__main__":
    _run_child(EngineConfig(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
