"""What the engine is asked and what it answers. One engine request is one sequence: the `n` samples
of a prompt are `n` requests that share their encoder input's pages by its key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tandem.errors import TandemError
from tandem.inputs import Media
from tandem.outputs import FinishReason, TokenLogprobs

if TYPE_CHECKING:
    import torch

    from tandem.params import EarlyStopping  # which needs pydantic; the engine does without


class HiddenStates(Protocol):
    """Hidden states another worker computed. The cluster sets them, see cluster/handoff.py."""

    @property
    def handle(self) -> int:
        """Unique among the engine's live encoder inputs; the same on every rank."""

    def __call__(self) -> torch.Tensor:
        """[length, d_model], on any device, at once: nothing is waited for. It may be called again, after
        a preemption.

        Raises HiddenStatesLost where they are gone.
        """


MediaKey = tuple[int, int]  # a digest of 128 bits, as two int64s
NO_KEY: MediaKey = (0, 0)  # an item's that is equal to no other


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One encoder input. Equal keys mean equal inputs: their cross-attention pages are shared.

    A request of a decoder-only model has one of no tokens, which needs no pages and no encoder.
    """

    key: str  # content hash of the model's revision, its preprocessor's included, token ids and media
    token_ids: tuple[int, ...]
    hidden: HiddenStates | None = None  # None where this engine encodes by itself
    # As the client sent them, in the order of the positions that hold the front's placeholder.
    media: tuple[Media, ...] = field(default=(), repr=False)
    # float32 [items, *FrontSpec.features], on the CPU. `media.prepare_input` sets them on the worker
    # that encodes.
    features: torch.Tensor | None = field(default=None, repr=False, compare=False)
    # With `features`, what each item is known by: equal keys mean equal features. (): as many NO_KEYs.
    media_keys: tuple[MediaKey, ...] = ()
    # Whose input it is. Equal media of several owners share no output of a front; the router sets it.
    owner: str = ""

    @property
    def item_keys(self) -> tuple[MediaKey, ...]:
        """The key of each item of `features`."""
        return self.media_keys or (NO_KEY,) * (0 if self.features is None else len(self.features))


class CrossSpan(NamedTuple):
    """Positions of the decoder, up to the next span's, that read the same part of the encoder input."""

    start: int  # the first of them
    begin: int  # encoder positions begin:end; of none, 0 and 0
    end: int
    # The part is media of the positions' own. False: they come before the first item, or there is none;
    # layers with `StackSpec.cross_gates` then do without their feed-forward.
    own: bool


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """How beams are searched, or drawn with a temperature above 0, as transformers does: see `beams.py`."""

    num_beams: int  # at least 2
    num_return_sequences: int  # at most num_beams
    length_penalty: float  # exponent of the length that a finished beam's score is divided by
    early_stopping: EarlyStopping
    renormalize: bool = False  # the processed scores are made log-probabilities again


@dataclass(frozen=True, slots=True)
class TimestampRules:
    """Times among the generated tokens, in pairs around each stretch of text, never decreasing: the rules of
    transformers' `WhisperTimeStampLogitsProcessor`."""

    first_id: int  # the time 0; this id and all above it are times
    text_end: int  # ids below it are text; those from it on, the model's EOS first, are special
    without_id: int  # says that no times follow: never generated
    last_initial_id: int | None  # the latest time that may come first; None: any


@dataclass(frozen=True, slots=True)
class Alignment:
    """Asks where in its encoder input each position of the decoder attends to: the positions and the input go
    together in order, on the path of the most attention (dynamic time warping)."""

    heads: tuple[tuple[int, int], ...]  # cross-attention's, at least one: layer of the decoder, head
    compared_from: int  # a position's attention is compared with that of all positions from this one on
    first: int  # positions first:stop are aligned
    stop: int
    input_length: int  # encoder positions, from the first on; those after them do not count
    cropped: bool  # the softmax of attention is over these alone
    filter_width: int  # the width of the median filter along the input; odd


@dataclass(frozen=True, slots=True)
class Decoding:
    """`SamplingParams` with every default filled in: what the scheduler and the sampler read."""

    max_tokens: int
    min_tokens: int
    temperature: float  # 0: greedy
    top_k: int  # 0: off
    top_p: float  # 1: off
    min_p: float  # 0: off
    repetition_penalty: float  # 1: off
    seed: int  # this sample's; noise is keyed by (seed, number of tokens generated)
    stop_ids: frozenset[int]  # ids that end the sequence: EOS unless ignored, and the request's own
    eos_ids: frozenset[int]  # the model's own, for telling EOS from the request's stop ids
    logprobs: int | None  # None: none; k: the token's own and the k likeliest
    presence_penalty: float = 0.0  # 0: off
    frequency_penalty: float = 0.0  # 0: off
    no_repeat_ngram_size: int = 0  # 0: off
    encoder_no_repeat_ngram_size: int = 0  # 0: off
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what is added to its logit
    typical_p: float = 1.0  # 1: off
    forced_bos_id: int | None = None  # the only first token, where the decoder starts from one token
    # The first generated tokens, each the likeliest of these ids under the model's raw logits: what the
    # decoder starts from where part of it is for the model to say, as the language of Whisper's input. Beams
    # do not part there, and their scores do not count these tokens' number.
    opening_ids: tuple[tuple[int, ...], ...] = ()
    forced_eos_ids: tuple[int, ...] = ()  # the only tokens at max_tokens
    suppress_ids: tuple[int, ...] = ()  # never generated
    begin_suppress_ids: tuple[int, ...] = ()  # never generated first, after forced tokens
    timestamps: TimestampRules | None = None  # they begin after the opening; None: times are tokens like any
    beams: BeamSearch | None = None  # then no logprobs
    prompt_logprobs: int | None = (
        None  # alternatives to each token of the prefix, with its log-probability; None: none
    )
    sum_logprobs: bool = False  # deltas have `sum_logprob`
    # A position of the prefix and a token: the first delta has the token's log-probability there, under the
    # raw logits. Not with prompt_logprobs.
    probe: tuple[int, int] | None = None
    score_below: int | None = None  # a target's tokens are scored among the ids below; None: among all
    alignment: Alignment | None = None  # only a request with a target has one

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn: the likeliest token follows, or the likeliest beams."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to decode, or the beams of one prompt."""

    request_id: str  # unique among the engine's live requests
    encoder: EncoderInput
    prefix_ids: tuple[int, ...]  # decoder start token, then the decoder prompt; at least one
    decoding: Decoding
    # Tokens another engine has generated and delivered: decoding goes on after them, and they count towards
    # max_tokens and the seed's step. The router sets them when it moves a request. Beams have none: they
    # deliver at their end only, and start anew.
    generated_ids: tuple[int, ...] = ()
    # What the decoder's positions read of the encoder input, from position 0 on; generated tokens are the
    # last span's. Models with a `ModelSpec.media_token_id` have them, for others every position reads all.
    cross_spans: tuple[CrossSpan, ...] = ()
    # The tokens of a target, which are scored and not generated: the decoder is given them, as many as
    # `max_tokens`, and the one delta has their log-probabilities.
    target_ids: tuple[int, ...] = ()
    # The pages of its encoder input stay after it until they are needed: another request is to read them.
    keeps_input: bool = False
    priority: int = 0  # higher is earlier; see limits.PRIORITY_S
    timeout_s: float | None = None  # from submission; then it ends with reason `deadline`
    waited_s: float = 0.0  # since its arrival, before it was submitted here: it keeps its place in the order


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """One encoder input whose hidden states are wanted, and no answer."""

    encoder: EncoderInput
    priority: int = 0  # higher is earlier; see limits.PRIORITY_S
    timeout_s: float | None = None  # from its acceptance; None: the server's limit
    number: int = 0  # which of its call's prompts it is, from 0
    prompts: int = 1  # how many its call has


class Hypothesis(NamedTuple):
    """A finished beam."""

    token_ids: list[int]  # generated ids, EOS included
    score: float  # sum of the tokens' scores over length ** length_penalty
    finish_reason: FinishReason
    stop_reason: int | None
    sum_logprob: float | None = None  # see `Delta`


class Delta(NamedTuple):
    """What a sequence grew by, in one step or in several. Its last one has a `finish_reason` or an `error`.

    Beams and targets have a last one only. Every running sequence has one in every step, so it is a tuple:
    `list(delta)` is plain values, which Ray packs without pickle, and `Delta(*values)` is the delta again.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids, or of the target's
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the request's own stop id that ended it
    error: TandemError | None = None
    queued_s: float | None = None  # from arrival until it joined the batch; on the first delta with a token
    hypotheses: list[Hypothesis] | None = None  # the beams that ended by themselves, best first
    # The prefix's from its second token on, where they were asked for; on the first delta with a token.
    prompt_logprobs: list[TokenLogprobs] | None = None
    # The sum of the token_ids' log-probabilities, each among the processed scores that the token was chosen
    # from. For a drawn token these are the warped scores times the temperature.
    sum_logprob: float | None = None
    probe_logprob: float | None = None  # see `Decoding.probe`; on the first delta with a token
    # For each position from `Alignment.first` on, the first encoder position that goes with it.
    alignment: list[int] | None = None

    @property
    def last(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def merged(self, later: Delta) -> Delta:
        """This delta and its sequence's next as one. This one's lists grow in place: drop it."""
        token_ids, logprobs = self.token_ids, self.logprobs
        token_ids += later.token_ids
        if later[2:] == _ONLY_TOKENS:
            return self
        if logprobs is None:
            logprobs = later.logprobs
        elif later.logprobs is not None:
            logprobs += later.logprobs
        return Delta(
            self.request_id,
            token_ids,
            logprobs,
            later.finish_reason,
            later.stop_reason,
            later.error,
            self.queued_s if later.queued_s is None else later.queued_s,
            later.hypotheses,
            self.prompt_logprobs if later.prompt_logprobs is None else later.prompt_logprobs,
            _sum(self.sum_logprob, later.sum_logprob),
            self.probe_logprob if later.probe_logprob is None else later.probe_logprob,
            later.alignment,
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


# What follows the tokens in most deltas.
_ONLY_TOKENS = (None,) * (len(Delta._fields) - 2)


class MediaCounts(NamedTuple):
    """What became of items of media."""

    encoded: int = 0  # the front computed them
    reused: int = 0  # it did not compute them again
    nbytes: int = 0  # of the outputs that are kept now

    def since(self, before: MediaCounts) -> MediaCounts:
        return MediaCounts(self.encoded - before.encoded, self.reused - before.reused, self.nbytes)


class EngineStats(NamedTuple):
    """A snapshot for load balancing and metrics. Counters only grow."""

    running: int  # sequences in the batch, every beam of a search by itself
    waiting: int  # sequences not admitted yet, preempted ones included
    max_running: int  # the batch's size limit
    free_pages: int
    total_pages: int
    cross_pages: int  # used pages that hold cross-attention K/V
    steps: int  # steps applied; with work waiting and no new step the engine is stuck
    generated_tokens: int
    encoded_tokens: int
    preemptions: int
    drafted_tokens: int  # guessed, and computed
    accepted_tokens: int  # drafted tokens that were right
    # By value of `scheduling.plan.WaitingFor`: steps that the first waiting sequence did not join for it.
    waiting_for: dict[str, int]
    # Kernels compiled and graphs captured while a step was served, which all requests waited for, up to
    # seconds each. What runs before readiness should leave none.
    compilations: int = 0
    # The engine's front has these, see `execution.front_cache`:
    media_encoded: int = 0  # items that it computed
    media_reused: int = 0  # items that it did not compute again
    media_cache_bytes: int = 0  # its outputs that are kept
