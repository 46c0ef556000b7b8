"""Errors name their field as each protocol calls it."""

from __future__ import annotations

import pytest

from tandem.cluster.ingress.http.body import FIELDS as HTTP
from tandem.errors import InvalidRequest, RequestTooLarge, TandemError, renaming_fields
from tandem.protocol.wire import FIELDS as GRPC


@pytest.mark.parametrize(
    ("field", "grpc", "http"),
    [
        ("prompt", "encoder_prompt", "prompt"),
        ("prompt_token_ids", "encoder_prompt.token_ids", "prompt"),
        ("encoder_prompt", "encoder_prompt", "prompt"),
        ("encoder_prompt.prompt_token_ids", "encoder_prompt.token_ids", "prompt"),
        ("decoder_prompt.prompt_token_ids", "decoder_prompt.token_ids", "decoder_prompt"),
        ("targets.3.prompt_token_ids", "targets.3.token_ids", "targets.3"),
        ("multi_modal_data.audio", "encoder_prompt.media", None),
        ("encoder_prompt.multi_modal_data.image", "encoder_prompt.media", None),
        ("encoder_prompt.multi_modal_data.image.2", "encoder_prompt.media.2", None),
        ("timeout_s", "timeout_ms", "timeout_s"),
        ("request_id", "request_id", "x-request-id"),
        ("top_p", "top_p", "top_p"),
    ],
)
def test_a_field_in_a_protocols_words(field: str, grpc: str, http: str | None) -> None:
    for names, ours in ((GRPC, grpc), (HTTP, http)):
        if ours is not None:
            with pytest.raises(InvalidRequest, match="bad") as caught, renaming_fields(names):
                raise InvalidRequest("bad", field=field)
            assert caught.value.field == ours


def test_the_kind_of_error_stays() -> None:
    with pytest.raises(RequestTooLarge) as caught, renaming_fields(lambda field: f"--{field}"):
        raise RequestTooLarge("many", field="file")
    assert caught.value.field == "--file"
    with pytest.raises(TandemError) as other, renaming_fields({"": "nothing"}):
        raise TandemError("of no field")
    assert other.value.field is None
    with pytest.raises(KeyError), renaming_fields({"x": "y"}):
        raise KeyError("x")
