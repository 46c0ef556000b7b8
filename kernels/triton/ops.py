"""The launchers of the Triton kernels under the names of the ops. `reference` says what each op computes.
Importing this needs triton."""

from tandem.kernels.triton.activations import activate
from tandem.kernels.triton.attention_encoder import encoder_attention
from tandem.kernels.triton.attention_paged import (
    paged_beam_attention,
    paged_cross_attention,
    paged_self_attention,
)
from tandem.kernels.triton.decode_rows import gather_rows, match_prompt_tokens
from tandem.kernels.triton.kv_cache import write_kv
from tandem.kernels.triton.norms import add_layer_norm, add_rms_norm, rms_norm

__all__ = [
    "activate",
    "add_layer_norm",
    "add_rms_norm",
    "encoder_attention",
    "gather_rows",
    "match_prompt_tokens",
    "paged_beam_attention",
    "paged_cross_attention",
    "paged_self_attention",
    "rms_norm",
    "write_kv",
]
