#!/usr/bin/env python
"""Generates the Python modules of protos/tandem/v1/*.proto, next to them or into another folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[1] / "protos"


def generate(out: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` below `out`, in tandem/v1/.

    Raises `RuntimeError` where protoc finds fault with a file; it prints what.
    """
    sources = sorted((PROTOS / "tandem" / "v1").glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={well_known}",
        *(f"--{plugin}_out={out}" for plugin in ("python", "pyi", "grpc_python")),
        *map(str, sources),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed")
    for module in out.glob("tandem/v1/*_pb2*.py*"):
        # The generators leave out annotations and type arguments that mypy --strict asks for.
        module.write_text(f"# mypy: ignore-errors\n{module.read_text()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=PROTOS, help="default: next to the .proto files")
    generate(parser.parse_args().out)


if __name__ == "__main__":
    main()
