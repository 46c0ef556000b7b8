"""How likely it is that somebody speaks, for each 32 ms of a recording: Silero's voice activity model.

The weights are those in the package silero-vad. It is not imported: that would set the threads of PyTorch to
one in the whole process, and its own model takes one frame at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import pad

from tandem.workers.requests.media.audio_file import Samples

RATE: Final = 16_000  # samples a second
FRAME: Final = 512  # samples
FRAME_MS: Final = 32
_CONTEXT: Final = 64  # samples before a frame, which the model hears with it
_BLOCK: Final = 512  # frames that are computed at a time
# The model takes faint speech for silence: a recording whose loudest frame so far has less than this root
# mean square is amplified, by a factor of no more than the other.
_LOUD: Final = 0.1
_MOST_GAIN: Final = 1_000.0
# Parts of the names in the package's file, and ours.
_NAMES: Final = {
    "_model.": "", "stft.forward_basis_buffer": "stft.weight", "reparam_conv.": "", "decoder.rnn.": "rnn.",
    "decoder.decoder.2.": "output.", "_ih": "_ih_l0", "_hh": "_hh_l0",
}  # fmt: skip

State = tuple[torch.Tensor, torch.Tensor]


class VoiceActivity:
    """Hears one recording while it is decoded, and keeps a number for each frame of it."""

    def __init__(self) -> None:
        self._found: list[torch.Tensor] = []
        self._model, self._state = _model(), (torch.zeros(1, 128), torch.zeros(1, 128))
        self._context = np.zeros(_CONTEXT, np.float32)
        self._loudest = _LOUD / _MOST_GAIN

    def listen(self, parts: Iterable[Samples]) -> Iterator[Samples]:
        """The recording's parts, float32 [n] at RATE, as they are, each heard on its way."""
        held: list[Samples] = []
        count = 0
        for part in parts:
            held.append(part)
            count += len(part)
            if count >= _BLOCK * FRAME:
                samples = np.concatenate(held)
                whole = count - count % FRAME
                self._hear(samples[:whole])
                held, count = [samples[whole:]], count - whole
            yield part
        if count:
            samples = np.concatenate(held)
            self._hear(np.pad(samples, (0, -count % FRAME)))

    def hear(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Probabilities of speech, [frames], of a stream's next whole frames, float32 [frames * FRAME]."""
        if not len(samples):
            return np.zeros(0, np.float32)
        before = len(self._found)
        self._hear(samples)
        found = torch.cat(self._found[before:]).numpy()
        self._found.clear()
        return found

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Probabilities of speech, [frames]; silence fills the recording's last frame up."""
        return torch.cat([torch.zeros(0), *self._found]).numpy()

    @torch.inference_mode()
    def _hear(self, samples: Samples) -> None:
        """samples: whole frames."""
        heard = torch.from_numpy(np.concatenate([self._context, samples]))
        self._context = samples[-_CONTEXT:].copy()
        loudness = np.sqrt(np.square(samples.reshape(-1, FRAME)).mean(axis=1).max())
        self._loudest = max(self._loudest, float(loudness))
        heard *= max(1.0, _LOUD / self._loudest)
        for frames in heard.unfold(0, _CONTEXT + FRAME, FRAME).split(_BLOCK):
            probabilities, self._state = self._model(frames, self._state)
            self._found.append(probabilities)


class _Silero(nn.Module):
    """Magnitudes of four spectra a frame, convolutions over them, and a memory of the frames before."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.encoder = nn.ModuleList(
            [
                nn.Conv1d(129, 128, 3, padding=1),
                nn.Conv1d(128, 64, 3, stride=2, padding=1),
                nn.Conv1d(64, 64, 3, stride=2, padding=1),
                nn.Conv1d(64, 128, 3, padding=1),
            ]
        )
        self.rnn = nn.LSTM(128, 128)
        self.output = nn.Conv1d(128, 1, 1)

    def forward(self, frames: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """
        Args:
            frames: [n, context and frame], one after another.
            state: [1, 128] each, of the frame before.

        Returns [n], in 0 to 1, and the state after the last frame.
        """
        spectra = self.stft(pad(frames, (0, _CONTEXT), mode="reflect")[:, None])
        hidden = torch.hypot(*spectra.chunk(2, dim=1))
        for convolution in self.encoder:
            hidden = convolution(hidden).relu()
        hidden, state = self.rnn(hidden[..., 0], state)
        return self.output(hidden.relu()[..., None])[:, 0, 0].sigmoid(), state


@cache
def _model() -> _Silero:
    package = find_spec("silero_vad")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "data" / "silero_vad.jit"
    model = _Silero()
    weights = {}
    for name, value in torch.jit.load(file, map_location="cpu").state_dict().items():
        if name.startswith("_model."):  # the other model is for 8,000 samples a second
            for part, ours in _NAMES.items():
                name = name.replace(part, ours)
            weights[name] = value
    model.load_state_dict(weights)
    return model.eval()
