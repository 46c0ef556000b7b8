from __future__ import annotations

import pytest
import torch
from kernel_cases import bias_table
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from tandem import kernels
from tandem.kernels import Scores, relative_bias_table, windowed_bias_table
from tandem.kernels.reference import _toeplitz

PAIRS = [(b, d) for b in (2, 4, 5, 8, 16, 31, 32, 33, 64, 128) for d in (3, 17, 64, 100, 128, 129, 500, 1024)]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_distance_falls_in_the_bucket_of_transformers(bidirectional: bool) -> None:
    checked = 0
    for buckets, max_distance in PAIRS:
        exact = (buckets // 2 if bidirectional else buckets) // 2
        if not 0 < exact < max_distance:
            continue
        # The weight of a bucket is its number, so the table shows the bucket of each distance.
        weight = torch.arange(buckets, dtype=torch.float32).unsqueeze(1)
        table = relative_bias_table(weight, bidirectional, max_distance)[0]
        offset = torch.arange(-5 * max_distance, 5 * max_distance + 1)  # key - query
        expected = T5Attention._relative_position_bucket(offset, bidirectional, buckets, max_distance)
        if bidirectional:
            index = offset.clamp(-max_distance, max_distance) + max_distance
        else:
            index = (-offset).clamp(0, max_distance)
        assert torch.equal(table[index].long(), expected), (buckets, max_distance)
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("decoder", [True, False])
def test_it_is_the_bias_a_t5_layer_adds(decoder: bool) -> None:
    config = T5Config(d_model=16, d_kv=8, num_heads=3, is_decoder=decoder)
    layer = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    weight = layer.relative_attention_bias.weight.detach()
    length = 300
    expected = layer.compute_bias(length, length)[0].detach()
    table = relative_bias_table(weight, not decoder, config.relative_attention_max_distance)
    assert table.dtype == torch.float32
    if decoder:
        distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
        actual = table[:, distance.clamp(0, 128)]
        causal = distance >= 0
        assert torch.equal(actual[:, causal], expected[:, causal])
    else:
        assert torch.equal(_toeplitz(table, length), expected)


def test_a_rank_gets_the_table_of_its_heads() -> None:
    weight = bias_table(32, 6)
    whole = relative_bias_table(weight, True, 128)
    assert whole.shape == (6, 257)
    assert torch.equal(relative_bias_table(weight[:, 2:4], True, 128), whole[2:4])
    assert relative_bias_table(weight.bfloat16(), False, 128).dtype == torch.float32


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 16), (32, 8), (1, 128)])
def test_a_distance_within_the_exact_buckets_is_refused(buckets: int, max_distance: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        relative_bias_table(torch.zeros(buckets, 2), False, max_distance)


def test_a_windowed_table_hides_what_is_farther() -> None:
    table = torch.arange(7.0).repeat(2, 1)  # by distance from -3 to 3
    narrow, wide = windowed_bias_table(table, 1, 1), windowed_bias_table(table, 4, 4)
    assert narrow[1].tolist() == [-1e10, 2, 3, 4, -1e10]
    assert wide[0].tolist() == [-1e10, 0, 0, 1, 2, 3, 4, 5, 6, 6, -1e10]
    assert windowed_bias_table(table, 2, 0)[0].tolist() == [-1e10, 1, 2, 3, -1e10, -1e10, -1e10]
    assert windowed_bias_table(table[:, :3], 3, None)[0].tolist() == [0, 1, 2, 2, -1e10]
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 9, 2, 4)
    out = kernels.encoder_attention(q, k, v, torch.tensor([0, 9], dtype=torch.int32), 9, Scores(1.0, narrow))
    near = kernels.encoder_attention(
        q[3:6], k[3:6], v[3:6], torch.tensor([0, 3], dtype=torch.int32), 3, Scores(1.0, table)
    )
    torch.testing.assert_close(out[4], near[1])  # its neighbours are all it sees
