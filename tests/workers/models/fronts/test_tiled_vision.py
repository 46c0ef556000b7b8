"""mllama's front, held to transformers' modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mllama import TEXT, VISION, fill
from transformers import MllamaConfig, MllamaForConditionalGeneration

from tandem.workers.distributed import Group
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import load_encoder

ARRANGEMENTS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


@pytest.fixture(scope="module", params=[{}, {"image_size": 28, "intermediate_layers_indices": [2, 0]}])
def model(request: pytest.FixtureRequest) -> MllamaForConditionalGeneration:
    config = MllamaConfig(vision_config=VISION | request.param, text_config=TEXT)
    made = MllamaForConditionalGeneration(config).eval()
    fill(made)
    return made


@torch.no_grad()
def test_every_arrangement_of_tiles(model: MllamaForConditionalGeneration, tmp_path: Path) -> None:
    """Padded tiles' outputs included: positions before the first image attend to them."""
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    encoder = load_encoder(checkpoint, Placement(torch.device("cpu"), torch.float32, Group()))
    front = encoder.embedding.front
    assert front is not None
    spec = encoder.spec.front
    assert spec is not None
    assert spec.vision is not None
    size = spec.vision.tile_size
    torch.manual_seed(0)
    items, expected = [], []
    for number, (across, down) in enumerate(ARRANGEMENTS, start=1):
        tiles = torch.zeros(1, 1, 4, 3, size, size)
        tiles[:, :, : across * down] = torch.randn(across * down, 3, size, size)
        mask = torch.zeros(1, 1, 4, dtype=torch.int64)
        mask[..., : across * down] = 1
        states = model.model.vision_model(
            pixel_values=tiles, aspect_ratio_ids=torch.tensor([[number]]), aspect_ratio_mask=mask
        ).last_hidden_state
        expected.append(model.model.multi_modal_projector(states).flatten(0, 3))
        items.append(torch.cat([tiles.view(4, -1), torch.full((4, 1), float(number))], dim=1))
    features = torch.stack(items)
    assert features.shape[1:] == spec.features
    own = [across * down * spec.vision.tile_positions for across, down in ARRANGEMENTS]
    found = front(features, own)
    assert found.shape == (len(items) * spec.positions, encoder.spec.d_model)
    torch.testing.assert_close(found, torch.cat(expected), rtol=2e-5, atol=2e-5)
