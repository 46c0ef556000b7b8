"""The steps of deploy/Dockerfile without Docker: each stage in a folder of its own that is the root of what
runs there. Of this machine a step sees /usr, /etc, the interpreter and what a builder would be sent, and can
change nothing. The steps that install Debian's packages do not run."""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dockerfile

DEBIAN = "apt-get "
INTERPRETER = Path(sys.base_prefix)


@dataclass
class Settings:
    """What instructions say of those that follow, and of the container."""

    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


class Replay:
    """Builds below `work`."""

    def __init__(self, recipe: dockerfile.Dockerfile, work: Path) -> None:
        self.recipe = recipe
        self.work = work
        self.skipped: list[str] = []
        self._settings: dict[str, Settings] = {}
        self._context = work / "context"
        (work / "cache").mkdir(parents=True, exist_ok=True)  # pip's, kept from run to run

    def build(self, target: str) -> Settings:
        shutil.rmtree(self._context, ignore_errors=True)
        for path in dockerfile.sent():
            (self._context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(dockerfile.ROOT / path, self._context / path)
        for stage in self.recipe.needed(target):
            self._stage(stage)
        return self._settings[target]

    def root(self, stage: str) -> Path:
        return self.work / "stages" / stage

    def run(self, stage: str, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a shell's script as in a read-only container of a stage that is built, without a network.
        options: of `subprocess.run`."""
        return _run(self.root(stage), script, self._settings[stage], [], sealed=True, **options)

    def _stage(self, stage: dockerfile.Stage) -> None:
        root = self.root(stage.name)
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(exist_ok=True)
        if stage.base in self._settings:
            subprocess.run(["cp", "--archive", "--reflink=auto", self.root(stage.base), root], check=True)
            given = self._settings[stage.base]
            settings = replace(given, environment=dict(given.environment))
        else:
            _lay_out(root)
            settings = Settings()
        declared: dict[str, str] = {}
        for each in stage.instructions:
            if each.name == "ARG":
                declared |= each.pairs()
            elif each.name == "ENV":
                settings.environment |= each.pairs()
            elif each.name == "WORKDIR":
                settings.folder = each.text
                (root / each.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif each.name == "USER":
                settings.user = each.text
            elif each.name == "CMD":
                settings.command = each.words()
            elif each.name == "ENTRYPOINT":
                settings.entrypoint = each.words()
            elif each.name == "HEALTHCHECK":
                settings.health = replace(each, text=each.text.removeprefix("CMD ")).words()
            elif each.name == "COPY":
                self._copy(root, each, settings.folder)
            elif each.name == "RUN" and DEBIAN in each.text:
                self.skipped.append(f"{stage.name}: {each.text}")
            elif each.name == "RUN":
                print(f"{stage.name}: {each.text}", flush=True)
                for_step = replace(settings, environment=settings.environment | declared)
                binds = [self._mount(mount) for mount in each.mounts()]
                done = _run(root, each.text, for_step, binds)
                if done.returncode:
                    sys.exit(f"{stage.name}: the step ended with {done.returncode}")
        self._settings[stage.name] = settings

    def _mount(self, mount: dict[str, str]) -> tuple[Path, str]:
        if mount["type"] == "cache":
            return self.work / "cache", mount["target"]
        return self.root(mount["from"]) / mount["source"].lstrip("/"), mount["target"]

    def _copy(self, root: Path, copy: dockerfile.Instruction, folder: str) -> None:
        *sources, target = copy.words()
        begin = self.root(dict(copy.flags)["from"]) if copy.flags else self._context
        to = root / os.path.join(folder, target).lstrip("/")
        for source in sources:
            path = begin / source.lstrip("/")
            if path.is_dir():
                to.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "--archive", f"{path}/.", to], check=True)
            else:
                (to if target.endswith("/") else to.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to)


def _run(
    root: Path,
    script: str,
    settings: Settings,
    binds: list[tuple[Path, str]],
    *,
    sealed: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    steps: list[list[str | Path]] = [["mount", "--bind", root, root]]
    for source in ("/usr", "/etc", str(INTERPRETER)):
        steps += [*_bind(source, f"{root}{source}"), ["mount", "-o", "remount,ro,bind", f"{root}{source}"]]
    for folder, target in binds:
        steps += _bind(folder, f"{root}{target}")
    steps += [
        ["mount", "-t", kind, kind, f"{root}/{at}"] for kind, at in (("proc", "proc"), ("sysfs", "sys"))
    ]
    steps += [["mount", "--rbind", "/dev", f"{root}/dev"]]
    if sealed:
        steps += [["mount", "-o", "remount,ro,bind", root], ["mount", "-t", "tmpfs", "tmpfs", f"{root}/tmp"]]
        steps += [[sys.executable, "-c", _LOOPBACK]]
    user, group = settings.user.split(":")
    # The image's interpreter is in /usr/local; the one here comes last, after what a stage has made.
    path = f"{settings.environment.get('PATH', os.defpath)}:{INTERPRETER}/bin"
    environment = [f"{name}={value}" for name, value in (settings.environment | {"PATH": path}).items()]
    into = ["chroot", root, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    steps.append(
        ["exec", *into, "env", "-i", f"--chdir={settings.folder}", *environment, "/bin/sh", "-c", script]
    )
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    unshare += ["--net"] * sealed
    lines = "\n".join(shlex.join(map(str, step)) for step in steps)
    return subprocess.run([*unshare, "sh", "-euc", lines], text=True, **options)


def _bind(source: str | Path, target: str) -> list[list[str | Path]]:
    return [["mkdir", "-p", target], ["mount", "--bind", source, target]]


# Sets the interface's flags: it is up and runs.
_LOOPBACK = """import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))"""


def _lay_out(root: Path) -> None:
    """The folders of a root, with the links that lead into /usr as they are here."""
    if os.geteuid():
        sys.exit(
            "The Dockerfile's steps run as root: give root's rights to this program, or have Docker answer."
        )
    for name in ("dev", "etc", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ["/bin", "/sbin", *glob.glob("/lib*")]:
        if not re.fullmatch(r"usr/\w+", link := os.readlink(name)):
            sys.exit(f"{name} is no link into /usr, as it is on Debian")
        (root / name[1:]).symlink_to(link)
