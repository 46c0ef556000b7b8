"""The launchers of the Triton kernels, under the names of the ops. Importing this needs triton."""

from tandem.kernels.activations import gated_gelu
from tandem.kernels.attention_encoder import encoder_attention
from tandem.kernels.attention_paged import (
    paged_beam_attention,
    paged_cross_attention,
    paged_self_attention,
)
from tandem.kernels.kv_cache import write_kv
from tandem.kernels.norms import add_layer_norm, add_rms_norm, rms_norm
from tandem.kernels.sequences import follow_source, lay_out

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "encoder_attention",
    "follow_source",
    "gated_gelu",
    "lay_out",
    "paged_beam_attention",
    "paged_cross_attention",
    "paged_self_attention",
    "rms_norm",
    "write_kv",
]
