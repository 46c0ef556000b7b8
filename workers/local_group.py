"""A tensor-parallel group on this machine, without a cluster: rank 0 in this process, a child process
for each other rank. In a cluster the ranks are actors, see cluster/decoder.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.follower import Follower

_EXIT_S = 30.0  # for a child to end by itself after the group is closed


class LocalGroup:
    """Starts the children; `group` is rank 0's end."""

    def __init__(self, config: EngineConfig) -> None:
        self.group = Group()
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-group-")
        meeting = f"file://{Path(self._folder.name) / 'meeting'}"
        # A fresh interpreter rather than multiprocessing: the caller's main module is not run again.
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", "tandem.workers.local_group", json.dumps(asdict(config)), str(rank),
                 meeting],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for rank 0, which ends the others
            )
            for rank in range(1, config.tensor_parallel_size)
        ]  # fmt: skip
        try:
            self.group = Group.create(0, config.tensor_parallel_size, meeting, config.torch_device())
        except BaseException:
            self.close(kill=True)
            raise

    def close(self, *, kill: bool = False) -> None:
        """Waits for the children to end, as they do after the engine is closed; those that do not, or
        all where `kill`, are killed."""
        for child in self._children:
            if kill:
                child.kill()
            try:
                child.wait(_EXIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.group.close()  # where the engine could not
        self._folder.cleanup()


def _run_child(config: EngineConfig, rank: int, meeting: str) -> None:
    group = Group.create(rank, config.tensor_parallel_size, meeting, config.torch_device(rank))
    Follower(config, group).run()


if __name__ == "__main__":
    _run_child(EngineConfig(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
