"""The proto file keeps to its rules, and the committed modules are what it generates."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tandem.inputs import MODALITIES, REQUEST_OPTIONS
from tandem.params import BeamSearchParams, DecodingParams, SamplingParams
from tandem.v1 import inference_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "protos" / "tandem" / "v1"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_protos", ROOT / "scripts" / "generate_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_modules_are_what_the_proto_generates(generator: ModuleType, tmp_path: Path) -> None:
    stubs = (FOLDER / "inference_pb2_grpc.py").read_text()
    made_with = re.search(r"GRPC_GENERATED_VERSION = '(.+)'", stubs)
    assert made_with is not None
    if importlib.metadata.version("grpcio-tools") != made_with[1]:
        pytest.skip(f"the modules were generated with grpcio-tools {made_with[1]}")

    generator.generate(tmp_path)

    for name in ("inference_pb2.py", "inference_pb2.pyi", "inference_pb2_grpc.py"):
        generated = (tmp_path / "tandem" / "v1" / name).read_text()
        assert generated == (FOLDER / name).read_text(), f"run `make protos`: {name} is out of date"


PARAMS = [(pb.SamplingParams, SamplingParams), (pb.BeamSearchParams, BeamSearchParams)]


@pytest.mark.parametrize(("message", "params"), PARAMS)
def test_parameters_are_those_of_python(message: type[Message], params: type[DecodingParams]) -> None:
    own, shared = set(message.DESCRIPTOR.fields_by_name), set(pb.DecodingParams.DESCRIPTOR.fields_by_name)
    assert shared == set(DecodingParams.model_fields)
    assert own - {"decoding"} == set(params.model_fields) - shared


def test_options_are_those_of_python() -> None:
    options = {"timeout_s" if name == "timeout_ms" else name for name in pb.RequestOptions.DESCRIPTOR.fields_by_name}
    assert options == set(REQUEST_OPTIONS)


def test_modalities_are_those_of_python() -> None:
    names = [name.removeprefix("MODALITY_").lower() for name in pb.Media.Modality.keys()]
    assert names == ["unspecified", *MODALITIES]


MESSAGES = [*(message for message, _ in PARAMS), pb.DecodingParams, pb.RequestOptions]


@pytest.mark.parametrize("message", MESSAGES)
def test_every_parameter_can_be_told_apart_from_unset(message: type[Message]) -> None:
    for field in message.DESCRIPTOR.fields:
        assert field.is_repeated or field.has_presence, field.name


@pytest.mark.parametrize("message", MESSAGES)
def test_no_number_is_a_float_where_http_has_a_double(message: type[Message]) -> None:
    for field in message.DESCRIPTOR.fields:
        assert field.type != FieldDescriptor.TYPE_FLOAT, field.name


def test_streaming_takes_the_same_request() -> None:
    def fields(
        message: type[pb.GenerateRequest] | type[pb.GenerateStreamRequest],
    ) -> list[tuple[object, ...]]:
        return [(f.name, f.number, f.type, f.has_presence) for f in message.DESCRIPTOR.fields]

    assert fields(pb.GenerateRequest) == fields(pb.GenerateStreamRequest)
