"""What a model is, in one tree of numbers. A family fills it in (`families/`), and the one forward
(`stacks.py`) reads it without asking for the family's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tandem.inputs import Modality

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Activation = Literal["relu", "gelu", "gelu_new", "silu"]  # gelu is the exact one, gelu_new uses tanh
AttentionKind = Literal["self", "cross", "merged"]  # a decoder sublayer's; merged reads both kinds of keys
NormKind = Literal["rms", "rms_plus_one", "layer"]  # rms_plus_one: checkpoints hold its weight less one
PositionKind = Literal["learned", "sinusoidal", "sinusoidal_tensor2tensor"]  # see positions.py
# What is normalized before the first layer: tokens plus positions, the tokens alone, or nothing.
EmbeddingNorm = Literal["sum", "tokens"] | None


@dataclass(frozen=True)
class RelativeBias:
    """Bucketed relative position bias, added to the self-attention scores."""

    buckets: int
    max_distance: int  # positions; the bias is constant beyond
    per_layer: bool  # every layer has its own table; else the first one's serves all


@dataclass(frozen=True)
class Window:
    """Self-attention that sees only the keys near a query."""

    before: int  # positions that a key may lie before its query
    after: int  # positions that it may lie after it; 0 in decoders


@dataclass(frozen=True)
class PositionTable:
    """A vector for each absolute position, added to the embedded tokens."""

    kind: PositionKind
    offset: int = 0  # row of position 0
    # A checkpoint may hold a table of a computed kind, too, which then counts; False: it is always computed.
    stored: bool = True


@dataclass(frozen=True)
class LongWaves:
    """Llama 3's way to reach farther than was trained: `Rotary.factor` slows the long waves alone."""

    trained: int  # positions
    low: float  # waves of more than trained / low positions are slowed by the factor
    high: float  # those of less than trained / high are not; between the two the factor grows with the length


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the queries' and keys' leading dimensions are rotated by their position."""

    dimensions: int  # how many of each head's are rotated
    base: float
    factor: float = 1.0  # positions are divided by it, to reach farther than was trained
    long_waves: LongWaves | None = None  # None: the factor holds for all


@dataclass(frozen=True, kw_only=True)
class TiledVision:
    """A vision model of images that are cut into tiles, see fronts/tiled_vision.py."""

    tiles: int  # of one image, at most; there are always so many, the others are padding
    tile_size: int  # pixels of its height and width
    channels: int
    patch_size: int  # pixels of its height and width
    # How tiles may lie, in two numbers each; an image names its arrangement by 1, 2, …
    arrangements: tuple[tuple[int, int], ...]
    layers: int
    global_layers: int  # after them
    kept_layers: tuple[int, ...]  # whose outputs are part of the result, after that of the last
    d_model: int
    heads: int
    head_dim: int
    d_ff: int
    activation: Activation
    norm_eps: float  # in the layers

    @property
    def tile_positions(self) -> int:
        """A tile's patches, and one more for the tile."""
        return (self.tile_size // self.patch_size) ** 2 + 1

    @property
    def output_width(self) -> int:
        return self.d_model * (1 + len(self.kept_layers))


@dataclass(frozen=True, kw_only=True)
class DavitStage:
    """A stage of a DaViT: a convolution to fewer and wider positions, and blocks over them. Lengths are in
    positions of the stage before, the first stage's in pixels."""

    blocks: int
    width: int
    heads: int  # of the attention within windows
    groups: int  # of channels that attend to each other
    patch: int  # side of what one position sees
    stride: int
    padding: int
    norm_first: bool  # the convolution's input is normalized, not its output


@dataclass(frozen=True, kw_only=True)
class DavitSpec:
    """The vision tower of Florence-2."""

    stages: tuple[DavitStage, ...]
    window: int  # side, in positions
    mlp_ratio: float  # inner width of a feed-forward over its width
    qkv_bias: bool
    activation: Activation
    max_side: int  # rows of the tables of row and column vectors
    max_frames: int  # rows of the table of times, of which an image takes the first
    grid: tuple[int, int]  # height and width of the last stage, in positions


@dataclass(frozen=True, kw_only=True)
class PatchesSpec:
    """How an image becomes the positions of ViT or DeiT."""

    size: tuple[int, int]  # height and width of a patch, in pixels
    leading: int  # vectors of the front's own before the patches


@dataclass(frozen=True, kw_only=True)
class FlatPatchesSpec:
    """How an image becomes the positions of Pix2Struct: as many patches as keep its shape, row by row."""

    size: tuple[int, int]  # height and width of a patch, in pixels
    rows: int  # of each of the tables of row and column vectors; numbers count from 1


@dataclass(frozen=True, kw_only=True)
class BeitSpec:
    """BEiT's layers, which are part of the front."""

    patch: int  # side, in pixels
    layers: int
    heads: int
    d_ff: int
    activation: Activation
    norm_eps: float
    positions: bool  # vectors by position are added to the patches
    bias: Literal["layer", "shared"] | None  # on the scores, by distance: each layer's own, or one for all
    scaled: bool  # what a layer adds to the sum is scaled by weights


@dataclass(frozen=True, kw_only=True)
class SwinSpec:
    """Swin's stages, which are part of the front."""

    patch: tuple[int, int]  # height and width, in pixels
    width: int  # of the first stage; each has twice the one before
    depths: tuple[int, ...]  # layers, by stage
    heads: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]  # height and width in positions, by stage
    window: int  # side, in positions
    mlp_ratio: float  # inner width of a feed-forward over its width
    activation: Activation
    norm_eps: float


@dataclass(frozen=True, kw_only=True)
class SiglipSpec:
    """SigLIP's vision tower, and how its positions become fewer."""

    patch: int  # side, in pixels
    width: int
    layers: int
    heads: int
    d_ff: int
    activation: Activation
    norm_eps: float
    pool: int  # side of the squares, in patches, whose mean is one position of the encoder


@dataclass(frozen=True, kw_only=True)
class FrontSpec:
    """What turns media into vectors before a stack: one layer kind of `fronts/`.

    Encoder positions that hold `placeholder_id` take the front's output instead of a token's embedding.
    """

    # See fronts/.
    kind: Literal[
        "audio_convolutions",
        "image_patches",
        "flat_patches",
        "beit",
        "swin",
        "davit",
        "siglip",
        "tiled_vision",
    ]
    modality: Modality
    placeholder_id: int  # in `EncoderInput.token_ids`; no token of a text
    positions: int  # encoder positions of one item
    # Shape of one item's features. Audio: (mel bins, frames); an image: (channels, height, width), in tiles
    # (tiles, numbers of a tile), in flat patches (patches, numbers of a patch).
    features: tuple[int, ...]
    # `positions` are the most that an item takes. It takes the first rows of the front's output, as many as
    # its encoder input has placeholders; the others are padding. Encoders of one item and no text only.
    varying: bool = False
    # In place of `placeholder_id` at positions of padding, which come last among an input's hidden states,
    # whatever their place in `token_ids`. None: there are none.
    padding_id: int | None = None
    # Items stand within the encoder's text, where the prompt puts them. False: before it.
    within_text: bool = False
    # The prompt's text is drawn above the image, as `Media.header_text`: the encoder reads it as pixels.
    header: bool = False
    # Set where `kind` is the front that they describe.
    patches: PatchesSpec | None = None
    flat_patches: FlatPatchesSpec | None = None
    beit: BeitSpec | None = None
    swin: SwinSpec | None = None
    davit: DavitSpec | None = None
    siglip: SiglipSpec | None = None
    vision: TiledVision | None = None

    @property
    def kept(self) -> bool:
        """Whether its output is worth keeping for another input with the same item: it is a vision model.
        Convolutions and patches are computed again in less time than an item is decoded."""
        return self.kind not in ("audio_convolutions", "image_patches", "flat_patches")

    def holds_media(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the encoder positions hold a row of the front's output."""
        own: npt.NDArray[np.bool_] = token_ids == self.placeholder_id
        return own if self.padding_id is None else own | (token_ids == self.padding_id)

    def own_positions(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many positions of each item in packed inputs are not padding, where `padding_id` is set: int64
        [items]."""
        of_items = token_ids[self.holds_media(token_ids)].reshape(-1, self.positions)
        own: npt.NDArray[np.int64] = (of_items == self.placeholder_id).sum(1)
        return own


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """One transformer stack. Encoder and decoder may differ in every field."""

    vocab_size: int | None  # None: an encoder that embeds no tokens, all its positions are the front's
    front: FrontSpec | None = None  # None: an encoder of tokens alone
    layers: int
    d_model: int
    heads: int
    kv_heads: int | None = None  # keys' and values', each read by heads / kv_heads of q; None: as many
    head_dim: int
    d_ff: int
    activation: Activation
    gated: bool = False  # feed-forward: act(gate) * linear
    bias: bool = False  # all projections in the layers have one
    norm: NormKind
    norm_eps: float
    post_norm: bool = False  # a sublayer's sum is normalized, not its input; there is no final norm then
    output_norm: bool = False  # a sublayer's output is normalized before it joins the sum
    qk_norm: bool = False  # each head's queries and keys are normalized, before rotary positions
    cross_qk_norm: bool | None = None  # the same of cross-attention, where it differs
    parallel_residual: bool = False  # attention and feed-forward read the same norm's output
    attention_scale: float  # on the scores of self- and cross-attention
    softcap: float | None = None  # on the same scores, see kernels.reference.soft_capped
    # Decoders after an encoder: one softmax over the keys of self- and cross-attention in every layer, or
    # cross-attention in place of self-attention in the layers listed. Neither: one after the other.
    merged_attention: bool = False
    cross_layers: tuple[int, ...] | None = None
    # The layers listed multiply the outputs of attention and feed-forward by tanh of a weight each, and the
    # feed-forward's by 0 in rows that read no media, see `request.CrossSpan`.
    cross_gates: bool = False
    embedding_scale: float = 1.0
    embedding_norm: EmbeddingNorm = None
    own_vector: int | None = None  # a token whose vector is a weight of its own, which is not scaled
    token_types: int = 0  # rows of the table of token types; only the first is used
    max_positions: int | None = None  # longest sequence; None: any length
    positions: PositionTable | None = None
    relative_bias: RelativeBias | None = None
    windows: tuple[Window | None, ...] = ()  # each layer's; empty: every layer sees everything
    # Positions in a block of the input. Each block is summed up in one more key that every query sees,
    # whatever the window, with a bias like relative_bias, by distance in blocks. Encoders only.
    summary_block: int | None = None
    rotary: Rotary | None = None
    window_rotary: Rotary | None = None  # in the layers with a window, where it differs

    @property
    def shared_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def window(self, layer: int) -> Window | None:
        return self.windows[layer] if self.windows else None

    def layer_rotary(self, layer: int) -> Rotary | None:
        return self.window_rotary or self.rotary if self.window(layer) else self.rotary


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An encoder-decoder model, or a decoder alone."""

    family: str
    encoder: StackSpec | None  # None: decoder-only, there is no cross-attention
    decoder: StackSpec
    one_vocabulary: bool = True  # False: the decoder's ids stand for other tokens than the encoder's
    enc_to_dec_proj: bool = False  # encoder output is projected to the decoder's width
    output_transform: Activation | None = None  # before the logits: projection, activation, norm
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    output_bias: bool = False  # on the logits
    prompt_is_start: bool = False  # a decoder prompt stands in the start token's place, not after it
    decoder_start_id: int | None  # None: config.json does not say, or the prompt is the start
    pad_id: int
    eos_ids: tuple[int, ...]
    # Stands in the decoder's prompt for an item of media. Positions from there on read the item, see
    # `request.CrossSpan`, and the prompt is all that the decoder starts from. None: every position reads all
    # of the encoder's output.
    media_token_id: int | None = None
    read_only_ids: int = 0  # the last of the decoder's vocabulary, which are read and never generated

    def attentions(self, layer: int) -> tuple[AttentionKind, ...]:
        """The kinds of attention in a layer of the decoder, in order."""
        stack = self.decoder
        if self.encoder is None:
            return ("self",)
        if stack.merged_attention:
            return ("merged",)
        if stack.cross_layers is None:
            return "self", "cross"
        return ("cross",) if layer in stack.cross_layers else ("self",)

    def plane(self, layer: int, kind: AttentionKind) -> int:
        """The plane of the KV pool of this kind of attention in a layer; of cross-attention the first."""
        before = sum(kind in self.attentions(earlier) for earlier in range(layer))
        return before * self.cross_planes if kind == "cross" else before

    @property
    def item_positions(self) -> int:
        """Encoder positions of an item of media, padding included; 0: the model reads none."""
        return 0 if self.encoder is None or self.encoder.front is None else self.encoder.front.positions

    @property
    def kv_planes(self) -> int:
        """Planes of the KV pool. Self- and cross-attentions share them, for they have different pages."""
        kinds = self._kinds
        return len(kinds) - min(kinds.count("self"), kinds.count("cross"))

    @property
    def cross_planes(self) -> int:
        """Planes of each cross-attention: as many as leave none empty where fewer layers have it than
        self-attention. A page then holds so many times the positions of an encoder input."""
        kinds = self._kinds
        return max(1, kinds.count("self") // max(1, kinds.count("cross")))

    @property
    def _kinds(self) -> list[AttentionKind]:
        """The kinds of all attentions of the decoder."""
        return [kind for layer in range(self.decoder.layers) for kind in self.attentions(layer)]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary that is generated."""
        assert self.decoder.vocab_size is not None, "a decoder reads tokens"
        return self.decoder.vocab_size - self.read_only_ids

    @property
    def drafts_from_source(self) -> bool:
        """Whether the source's ids are tokens that the decoder may repeat. (A decoder-only model's source is
        its prompt.)"""
        return self.encoder is None or (
            self.one_vocabulary and self.encoder.vocab_size == self.decoder.vocab_size
        )
