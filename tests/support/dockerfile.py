"""deploy/Dockerfile as data: its stages and their instructions, and the files that a builder is sent.

It knows what that file uses, and refuses the rest: here-documents, stages without a name, patterns of a
.dockerignore with more than `*` and `**/`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "Dockerfile"
DEVICES = ("cpu", "gpu")  # what an image is built for
SERVER = "server"  # the stage that is the image
IGNORED = ROOT / "deploy" / "Dockerfile.dockerignore"
_KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "USER",
    "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    name: str
    flags: tuple[tuple[str, str], ...]  # of `--mount=…`: ("mount", "…")
    text: str  # what follows, on one line

    def words(self) -> list[str]:
        """The arguments, also of the JSON form."""
        return (
            [str(each) for each in json.loads(self.text)] if self.text[0] == "[" else shlex.split(self.text)
        )

    def pairs(self) -> dict[str, str]:
        """Of NAME=VALUE …"""
        return dict(word.split("=", 1) for word in self.words())

    def mounts(self) -> list[dict[str, str]]:
        """Of a RUN."""
        return [
            dict(part.split("=", 1) for part in value.split(","))
            for name, value in self.flags
            if name == "mount"
        ]


@dataclass(frozen=True)
class Stage:
    name: str
    base: str  # another stage, or an image
    instructions: tuple[Instruction, ...]

    def all(self, *names: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name in names]

    def reads(self) -> set[str]:
        """The stages that it copies or mounts files of."""
        flags = [dict(each.flags) for each in self.all("COPY")]
        return {found["from"] for found in [*flags, *self.mounts()] if "from" in found}

    def mounts(self) -> list[dict[str, str]]:
        return [mount for each in self.all("RUN") for mount in each.mounts()]


@dataclass(frozen=True)
class Dockerfile:
    arguments: dict[str, str]  # those before the first stage, with their defaults
    stages: dict[str, Stage]

    def lineage(self, stage: str) -> list[Stage]:
        """The stages that a stage consists of, the first one first."""
        found = [self.stages[stage]]
        while found[0].base in self.stages:
            found.insert(0, self.stages[found[0].base])
        return found

    def needed(self, last: str) -> list[Stage]:
        """All stages that have to be built for a stage, in their order."""
        names = {stage.name for stage in self.lineage(last)}
        names |= {
            stage.name
            for name in names
            for other in self.stages[name].reads()
            for stage in self.needed(other)
        }
        return [stage for stage in self.stages.values() if stage.name in names]

    def instructions(self) -> list[Instruction]:
        """Of the image."""
        return [each for stage in self.lineage(SERVER) for each in stage.instructions]


def read(text: str, given: Mapping[str, str] | None = None) -> Dockerfile:
    """The recipe with the values of its build arguments in the place of their names, the given ones first.
    Raises ValueError for what it does not know."""
    given = given or {}
    defaults: dict[str, str] = {}
    declared: dict[str, str] = {}  # by the stage that is being read
    stages: dict[str, list[Instruction]] = {}
    bases: dict[str, str] = {}
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            base, keyword, name = instruction.text.split()
            if keyword != "AS":
                raise ValueError(f"a stage without a name: {instruction.text}")
            bases[name] = _substituted(base, {**defaults, **given})
            stages[name], declared = [], {}
        elif not bases:
            defaults |= instruction.pairs()
        elif instruction.name == "ARG":
            argument, _, default = instruction.text.partition("=")
            declared[argument] = given.get(argument, default or defaults.get(argument, ""))
            stages[name].append(replace(instruction, text=f"{argument}={declared[argument]}"))
        else:
            if instruction.name == "COPY":
                instruction = replace(instruction, text=_substituted(instruction.text, declared))
            stages[name].append(instruction)
    return Dockerfile(defaults, {name: Stage(name, bases[name], tuple(stages[name])) for name in bases})


def _substituted(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], text)


def _instructions(text: str) -> Iterator[Instruction]:
    joined = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.partition(" ")
        flags = []
        while found := re.match(r"\s*--([\w-]+)=(\S+)", rest):
            flags.append((found[1], found[2]))
            rest = rest[found.end() :]
        if name not in _KNOWN or "<<" in rest:
            raise ValueError(f"not known here: {line:.100}")
        yield Instruction(name, tuple(flags), re.sub(r"\s+", " ", rest).strip())


def sent(root: Path = ROOT, ignored: str | None = None) -> Iterator[Path]:
    """The files below root that a builder is sent, relative to it.

    ignored: a .dockerignore. Of its rules, the last one counts that names the file or a folder above it.
    """
    lines = (IGNORED.read_text() if ignored is None else ignored).splitlines()
    rules = [(line[0] != "!", _pattern(line.lstrip("!"))) for line in lines if line and line[0] != "#"]
    # Everything else is left out, and never walked through.
    for named in (root / line[1:] for line in lines if line.startswith("!")):
        for path in sorted([named, *named.rglob("*")]):
            relative = path.relative_to(root)
            names = [each.as_posix() for each in (relative, *relative.parents)]
            out = [out for out, pattern in rules if any(map(pattern.fullmatch, names))]
            if path.is_file() and not out[-1]:
                yield relative


def _pattern(text: str) -> re.Pattern[str]:
    if re.search(r"[?\[\]\\]|\*\*(?!/)", text):
        raise ValueError(f"not known here: {text}")
    parts = re.split(r"(\*\*/|\*)", text)
    return re.compile("".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts))
