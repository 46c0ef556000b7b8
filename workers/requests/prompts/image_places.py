"""Where images stand within an encoder's text: a token of the prompt becomes what the encoder reads there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.workers.models.spec import FrontSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the tokenizer must name: the token that begins an image, that of an image's position, and the one that
# ends it.
_TOKENS: Final = ("boi_token", "image_token", "eoi_token")


class ImagePlaces:
    """transformers' `Gemma3Processor`, which knows what stands around an image.

    Its methods may be called from several threads at once.
    """

    def __init__(self, front: FrontSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ModelLoadError for a tokenizer that cannot be the model's."""
        from transformers import Gemma3Processor
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        if absent := [name for name in _TOKENS if not getattr(tokenizer, name, None)]:
            raise ModelLoadError(
                f"has no {' and no '.join(absent)}, with which images stand in a text; without an image "
                "processor in its folder the model reads text alone",
                field="tokenizer",
            )
        self.front = front
        # An image takes one token until the text is ids. The processor asks for an image processor, and
        # nothing is read of it.
        self._processor: Any = Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer, image_seq_length=1)
        (self._position_id,) = self._processor.image_token_ids
        if self._position_id != front.placeholder_id:
            raise ModelLoadError(
                f"token {self._position_id} is its {self._processor.tokenizer.image_token}, in config.json "
                f"image_token_index is {front.placeholder_id}",
                field="tokenizer",
            )

    @classmethod
    def of(cls, front: FrontSpec | None, tokenizer: PreTrainedTokenizerBase) -> ImagePlaces | None:
        """None for a model whose text has no media within it."""
        return None if front is None or not front.within_text else cls(front, tokenizer)

    @property
    def token(self) -> str:
        """What stands for an image in a prompt."""
        token: str = self._processor.boi_token
        return token

    def text(self, text: str, images: int, field: str) -> str:
        """A prompt's text, to be tokenized: each image's token with what stands around it, and one token for
        its positions. A prompt of images alone is their tokens. Raises InvalidRequest where these are not as
        many as there are images."""
        if images and not text:
            text = " ".join([self.token] * images)
        if (count := text.count(self.token)) != images:
            raise InvalidRequest(
                f"{self.token} stands in it {count} times, for {images} media items: put one where each "
                "belongs",
                field=field,
            )
        around: str = self._processor.full_image_sequence
        return text.replace(self.token, around)

    def spread(self, ids: list[int], images: int, field: str) -> list[int]:
        """The ids of such a text, with as many of each image's token as it takes positions. Raises
        InvalidRequest where the text had one of its own."""
        if ids.count(self._position_id) != images:
            raise InvalidRequest(
                f"has token {self._position_id}, which stands for a position of an image: write {self.token} "
                "for an image",
                field=field,
            )
        spread: list[int] = []
        for one in ids:
            spread += [one] * (self.front.positions if one == self._position_id else 1)
        return spread

    def check_ids(self, ids: list[int], images: int, field: str) -> None:
        """Ids hold every position of their images, as transformers' processor gives them. Raises
        InvalidRequest."""
        if (count := ids.count(self._position_id)) != (positions := images * self.front.positions):
            raise InvalidRequest(
                f"has token {self._position_id}, a position of an image, {count} times, for {images} media "
                f"items, which take {positions} positions",
                field=field,
            )
