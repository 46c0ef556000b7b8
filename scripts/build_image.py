"""Builds an image of deploy/Dockerfile, starts it as strictly as it can be, and proves that it serves.

    python scripts/build_image.py cpu            # or gpu: the build argument DEVICE

Where Docker answers, or podman: builds; starts the image read-only, as its own user, without a network and
without capabilities; asks it over HTTP and gRPC; looks at what is installed; ends it by SIGTERM, and
another one by SIGINT while it starts; runs `tandem demo`; prints the sizes, and holds the CPU's to its
limit. Where neither does, or with `--engine none`: the Dockerfile's own steps run in folders below
build/image, which takes root on a Linux of Debian's kind and a C++ compiler, and what comes out is asked
the same. What was not shown is said at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import dockerfile  # noqa: E402
import image_steps  # noqa: E402
import locked  # noqa: E402

PROBE = (ROOT / "scripts" / "image_probe.py").read_text()
WORK = ROOT / "build" / "image"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# Of `docker run`. /tmp has to allow execution: Triton loads from there what it compiles.
STRICT = [
    "--read-only", "--tmpfs=/tmp:exec,mode=1777", "--network=none", "--cap-drop=ALL",
    "--security-opt=no-new-privileges", "--shm-size=2g",
]  # fmt: skip
RAY = "/opt/tandem/bin/ray"
CPU_MB = 1500  # the most that the CPU's image may take, unpacked
BASE_MB = 140  # of that, what is outside /opt, where it is not there to be measured
STARTING_S = 4  # when a server that starts is interrupted
BESIDES = {"pip", "setuptools", "tandem-serve"}  # what constraints.txt need not lock


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("device", choices=dockerfile.DEVICES, nargs="?", default="cpu")
    parser.add_argument("--engine", help="docker, podman or none; default: the first that answers")
    parser.add_argument("--tag", help=f"default: tandem-serve:{VERSION}-DEVICE")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    device = arguments.device
    given = dict(pair.split("=", 1) for pair in arguments.build_arg) | {"DEVICE": device}
    engine = arguments.engine or next(filter(answers, ("docker", "podman")), "none")
    if engine == "none":
        not_shown = without_engine(given)
    else:
        tag = arguments.tag or f"tandem-serve:{VERSION}-{device}"
        not_shown = with_engine(engine, tag, given)
    if device == "gpu":
        not_shown.append("a GPU: the server ran on the CPU")
    print("Not shown:", *(not_shown or ["nothing"]), sep="\n  ")


def answers(engine: str) -> bool:
    if shutil.which(engine) is None:
        return False
    return subprocess.run([engine, "info"], capture_output=True).returncode == 0


def with_engine(engine: str, tag: str, given: dict[str, str]) -> list[str]:
    def call(*arguments: str, **options: Any) -> str:
        done = subprocess.run([engine, *arguments], text=True, stdout=subprocess.PIPE, **options)
        if done.returncode:
            sys.exit(f"{engine} {shlex.join(arguments)}: exit code {done.returncode}\n{done.stdout}")
        return str(done.stdout).strip()

    commit = revision()
    options = ["--file", str(dockerfile.FILE), "--tag", tag]
    options += [f"--build-arg={name}={value}" for name, value in given.items()]
    options.append(f"--label=org.opencontainers.image.revision={commit}")
    if code := subprocess.run([engine, "build", *options, str(ROOT)]).returncode:
        sys.exit(code)
    (image,) = json.loads(call("image", "inspect", tag))
    labels = image["Config"]["Labels"]
    expect("the version's label", labels["org.opencontainers.image.version"], VERSION)
    expect("the commit's label", labels["org.opencontainers.image.revision"], commit)

    def ended(container: str, signal: str) -> int:
        call("kill", "--signal", signal, container)
        return int(call("wait", container))

    serving = call("run", "--detach", *STRICT, tag)
    starting = ""
    try:
        answer = call("exec", "--interactive", serving, "python", "-", input=PROBE)
        check(json.loads(answer), given["DEVICE"])
        expect("tandem --version", call("exec", serving, "tandem", "--version"), f"tandem {VERSION}")
        health = image["Config"].get("Healthcheck") or image["Healthcheck"]  # Docker's place, podman's
        call("exec", serving, *health["Test"][1:])
        print("The image's health check passes.")
        expect("ray, in a login shell", call("exec", serving, "bash", "-lc", "command -v ray"), RAY)
        expect("the exit code after SIGTERM", ended(serving, "TERM"), 143)
        starting = call("run", "--detach", *STRICT, tag)
        time.sleep(STARTING_S)
        expect("the exit code after SIGINT, while it starts", ended(starting, "INT"), 130)
    finally:
        for container in filter(None, (serving, starting)):
            if sys.exc_info()[0]:
                subprocess.run([engine, "logs", "--tail=40", container])
            call("rm", "--force", container)
    print(call("run", "--rm", *STRICT, tag, "tandem", "demo"))
    print(f"{tag}, by layers:")
    print(call("history", "--format", "{{.Size}}\t{{.CreatedBy}}", tag))
    check_size(given["DEVICE"], image["Size"])
    return [f"the base {given['PYTHON_IMAGE']} is not the Dockerfile's"] if "PYTHON_IMAGE" in given else []


def without_engine(given: dict[str, str]) -> list[str]:
    recipe = dockerfile.read(dockerfile.FILE.read_text(), given)
    replay = image_steps.Replay(recipe, WORK)
    settings = replay.build(dockerfile.SERVER)
    serve = shlex.join(settings.command)
    # The server's own lines go to standard error, the probe's and the exit code to standard output.
    script = f"{serve} >&2 & server=$!; python -; kill -TERM $server; wait $server; code=$?; echo; echo $code"
    done = replay.run(dockerfile.SERVER, script, input=PROBE, stdout=subprocess.PIPE)
    found, _, code = done.stdout.strip().rpartition("\n")
    if not found:
        sys.exit("the server did not answer")
    check(json.loads(found), given["DEVICE"])
    expect("the exit code after SIGTERM", int(code), 143)
    script = f"{serve} & server=$!; sleep {STARTING_S}; kill -INT $server; wait $server"
    done = replay.run(dockerfile.SERVER, script)
    expect("the exit code after SIGINT, while it starts", done.returncode, 130)
    script = "tandem --version && tandem demo"
    done = replay.run(dockerfile.SERVER, script, stdout=subprocess.PIPE)
    print(done.stdout)
    expect("the exit code of tandem demo", done.returncode, 0)
    expect("tandem --version", done.stdout.partition("\n")[0], f"tandem {VERSION}")
    made = replay.root(dockerfile.SERVER) / "opt"
    count = f"tar --create {shlex.quote(str(made))} | gzip | wc --bytes"
    packed = int(subprocess.run(count, shell=True, check=True, capture_output=True).stdout)
    print(f"What the base does not have takes {packed / 1e6:.0f} MB in a registry, compressed.")
    used = subprocess.run(["du", "--bytes", "--summarize", made], check=True, capture_output=True)
    check_size(given["DEVICE"], int(used.stdout.split()[0]) + BASE_MB * 10**6)
    return [
        f"the base {recipe.stages['base'].base}: Python {sys.version.split()[0]} and /usr are this machine's",
        *(f"a step that installs Debian's packages: {step}" for step in replay.skipped),
        f"process 1, {settings.entrypoint}, and the health check, {settings.health}",
        "layers, and the base's size",
    ]


def check(found: dict[str, Any], device: str) -> None:
    """Ends the program where the image is not as it should be."""
    print(f"It answers {found['ready_s']} s after the first question: {found['http']!r}")
    expect("gRPC's answer", found["grpc"], found["http"])
    expect("compiled CPU kernels", found["cpu_kernels"], True)
    expect("CUDA in PyTorch", found["cuda"] is not None, device == "gpu")
    expect("Triton", "triton" in found["packages"], device == "gpu")
    expect("the user", found["uid"], 1000)
    expect("writable folders", found["writable"], [])
    expect("network interfaces", found["interfaces"], ["lo"])
    expect("tests", found["tests"], [])
    lock = locked.versions((ROOT / "constraints.txt").read_text())
    installed = {name.lower().replace("_", "-").replace(".", "-"): v for name, v in found["packages"].items()}
    other = {
        name: version
        for name, version in installed.items()
        if name not in BESIDES and version.partition("+")[0] != lock.get(name)
    }
    expect("packages of other versions than the locked", other, {})
    expect("Tandem's version", installed["tandem-serve"], VERSION)


def check_size(device: str, size: int) -> None:
    print(f"Unpacked, the image has {size / 1e6:.0f} MB.")
    if device == "cpu" and size > CPU_MB * 10**6:
        sys.exit(f"They should be {CPU_MB} at most.")


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        sys.exit(f"{what}: {found!r}, and should be {wanted!r}")
    print(f"{what}: {found!r}")


def revision() -> str:
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
