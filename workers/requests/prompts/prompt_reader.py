"""A prompt of any kind → what the encoder reads and what the decoder starts from."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Final

from tandem.errors import InvalidRequest, renaming_fields
from tandem.inputs import Media, Prompt, PromptSide, SingletonPrompt, decoder_side, split_prompt
from tandem.limits import Limits
from tandem.outputs import Parse
from tandem.workers.request import CrossSpan, EncoderInput
from tandem.workers.requests.media import MediaProcessor, check_items, naming_item, own_positions
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.parameters.decoding import check_ids
from tandem.workers.requests.prompts.cross_spans import cross_spans
from tandem.workers.requests.prompts.image_places import ImagePlaces
from tandem.workers.requests.prompts.image_tasks import ImageTasks
from tandem.workers.requests.prompts.tokenizer import Side, TextTokenizer, check_text
from tandem.workers.requests.speech import Opening
from tandem.workers.requests.tasks import ResolvedTask

# What errors call a decoder prompt, as text and as ids.
_DECODER_NAMES: Final = ("decoder_prompt", "decoder_prompt.prompt_token_ids")


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt, read."""

    encoder: EncoderInput
    encoder_ids: list[int]  # of its tokens alone
    prefix: list[int]  # what the decoder starts from, start token included
    context: list[int]  # the decoder prompt alone
    encoder_text: str | None  # as given, where it was text
    decoder_text: str | None
    opening: Opening  # what follows the prefix and is for the model to say
    parse: Parse | None = None  # of an answer's ids, the prefix included, where the prompt asks for a task
    cross_spans: tuple[CrossSpan, ...] = ()  # see `EngineRequest`

    @property
    def media_tokens(self) -> int:
        """Positions of the encoder input that its media take, their padding included."""
        return len(self.encoder.token_ids) - len(self.encoder_ids)


class PromptReader:
    """Checks prompts and makes their ids, for one model."""

    # What to do where the model would take more.
    _MORE_POSITIONS: Final = ": raise an LLM's max_encoder_length, or a server's limit encoder_tokens"

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: TextTokenizer,
        limits: Limits,
        processor: MediaProcessor | None,
        *,
        languages: bool,
        image_tasks: ImageTasks | None = None,
        image_places: ImagePlaces | None = None,
        parse: Parse | None = None,
    ) -> None:
        """`processor` is that of a model that reads media; `languages`: the tokenizer marks languages;
        `image_tasks`: tokens in a prompt stand for questions about its image; `image_places`: for images;
        `parse`: makes values of any answer's ids."""
        self.info, self.limits = info, limits
        self.max_encoder_tokens = min(limits.encoder_tokens, info.encoder_positions or limits.encoder_tokens)
        self.max_decoder_tokens = min(limits.decoder_tokens, info.decoder_positions or limits.decoder_tokens)
        # Tokens of a prompt's text: the encoder's, or the decoder's and one to be generated.
        text_is_decoded = info.encoder_vocab_size is None
        self.max_prompt_tokens = self.max_decoder_tokens - 1 if text_is_decoded else self.max_encoder_tokens
        self._tokenizer, self._processor, self._languages = tokenizer, processor, languages
        self._image_tasks, self._image_places, self._parse = image_tasks, image_places, parse

    def read(
        self, prompt: Prompt, task: ResolvedTask, truncate: int | None = None, answer: int | None = None
    ) -> ParsedPrompt:
        """Checks a prompt and makes its ids. Raises InvalidRequest, naming the field and the limit.

        truncate: most tokens of the encoder prompt, or of a decoder-only model's prompt, to read; -1 is the
            model's own length, which for a decoder-only model leaves `answer` tokens to generate, or one.
        """
        encoder_side, side, explicit = split_prompt(prompt)
        before = "encoder_prompt." if explicit else ""
        names = ("encoder_prompt" if explicit else "prompt"), f"{before}prompt_token_ids"
        media, front = encoder_side.media, self.info.front
        self._check_media(media, f"{before}multi_modal_data")
        if front and front.header:
            text = self._header_text(encoder_side, *names)
            media = tuple(one._replace(header_text=text) for one in media)
        encoder_ids, own = self._media_ids(media, f"{before}multi_modal_data") if front else ([], [])
        if self._image_places is not None:  # the prompt's own ids have them
            encoder_ids = []
        if front and self.info.encoder_vocab_size is None:
            drawn = front.header  # the text, so it is the encoder's
            said = not drawn and (bool(encoder_side.text) or encoder_side.token_ids is not None)
            if explicit and said and not self._only_media_tokens(encoder_side):
                raise InvalidRequest(f"{self.info.name!r} reads no text, its decoder does", field=names[0])
            if truncate is not None:
                raise InvalidRequest("is for encoder prompts of text", field="truncate_prompt_tokens")
            if not explicit and not drawn:  # the text of a lone prompt is the decoder's
                encoder_side, side = PromptSide(None, None), encoder_side if said else None
        else:
            encoder_ids += self.prompt_ids(
                encoder_side, *names, task, truncate, answer, taken=len(encoder_ids)
            )
        shown = _shown(encoder_side, names[0]), side and _shown(side, "decoder_prompt")
        spans: tuple[CrossSpan, ...] = ()
        if (token_id := self.info.media_token_id) is not None:
            context = prefix = self._whole_prefix(side, names if not explicit else _DECODER_NAMES)
            if (count := prefix.count(token_id)) != len(media):
                raise InvalidRequest(
                    f"{self._media_token} stands in it {count} times, for {len(media)} media items: put one "
                    "where each belongs",
                    field=names[0] if not explicit else _DECODER_NAMES[0],
                )
            spans = cross_spans(prefix, token_id, own, len(encoder_ids))
        elif not self.info.decoder_only:
            prefix, context = self._prefix(side, task)
        elif explicit:
            raise InvalidRequest(f"{self.info.name!r} is decoder-only: give a single prompt", field=names[0])
        else:
            context = prefix = encoder_ids
            encoder_ids, shown = [], (None, shown[0])
        encoder = EncoderInput(self._encoder_key(encoder_ids, media), tuple(encoder_ids), media=media)
        # Placeholders are no tokens that a client could read.
        placeholders = set() if front is None else {front.placeholder_id, front.padding_id}
        encoder_ids = [one for one in encoder_ids if one not in placeholders]
        opening: Opening = ()
        if not context:
            known = takewhile(lambda ids: len(ids) == 1, task.opening)
            prefix = [*prefix, *(ids[0] for ids in known)]
            opening = task.opening[len(prefix) - 1 :]
        elif task.said is not None:
            raise InvalidRequest("does not go with a decoder prompt, which says it", field=task.said)
        parse = self._parse
        if self._image_tasks is not None and encoder_side.token_ids is None:
            parse = self._image_tasks.parse(encoder_side.text, media, self.limits)
        return ParsedPrompt(encoder, encoder_ids, prefix, context, *shown, opening, parse, spans)

    @cached_property
    def _media_token(self) -> str:
        """As prompts write it."""
        assert self.info.media_token_id is not None
        return self._tokenizer.token_strings([self.info.media_token_id])[0]

    def _only_media_tokens(self, side: PromptSide) -> bool:
        """Whether an encoder prompt says no more than that there are media, as vLLM's may."""
        if self.info.media_token_id is None:
            return False
        if side.token_ids is not None:
            return set(side.token_ids) <= {self.info.media_token_id}
        return not (side.text or "").replace(self._media_token, "").strip()

    def _whole_prefix(self, side: PromptSide | None, names: tuple[str, str]) -> list[int]:
        """The decoder prompt as all that the decoder starts from. A text without BOS gets one, after images
        that come first, and all get the tokenizer's special tokens, as from transformers' processor."""
        text, ids = (None, None) if side is None else (side.text, side.token_ids)
        name, limit = names[0], self.max_decoder_tokens - 1  # one at least is to be generated
        if ids is None:
            if not text:
                raise InvalidRequest("must not be empty", field=name)
            bos = self._tokenizer.bos_token
            if bos and bos not in text:
                rest = text
                while rest.startswith(self._media_token):
                    rest = rest.removeprefix(self._media_token)
                text = text[: len(text) - len(rest)] + bos + rest
            ids = self._tokenizer.encode(text, name, limit, special=True)
        else:
            name = names[1]
        if not ids:
            raise InvalidRequest("has no tokens", field=name)
        if len(ids) > limit:
            raise InvalidRequest(f"has {len(ids)} tokens, the limit is {limit}", field=name)
        check_ids(ids, name, self.info.vocab_size + self.info.read_only_ids)
        return list(ids)

    def _media_ids(self, media: Sequence[Media], name: str) -> tuple[list[int], list[int]]:
        """The front's placeholder at each encoder position of the media, which come before the text, and the
        positions that each item has besides padding."""
        front = self.info.front
        assert self._processor is not None
        assert front is not None
        field = f"{name}.{front.modality}"
        if not media and self.info.encoder_vocab_size is None and self.info.media_token_id is None:
            raise InvalidRequest(f"is needed: {self.info.name!r} reads {front.modality}", field=field)
        if (self._image_tasks is not None or front.varying) and len(media) > 1:
            raise InvalidRequest(
                f"a prompt of {self.info.name!r} is about one image, got {len(media)}", field=field
            )
        own = []
        with renaming_fields({f"multi_modal_data.{front.modality}": field}):
            for number, one in enumerate(media):
                with naming_item(front.modality, number, len(media)):
                    own.append(own_positions(self._processor, one, self.limits))
        positions = sum(own) if front.padding_id is None else len(own) * front.positions
        if positions > self.max_encoder_tokens:
            taken = self.info.encoder_positions
            hint = "" if taken is not None and positions > taken else self._MORE_POSITIONS
            raise InvalidRequest(
                f"{len(media)} take {positions} encoder positions, the limit is "
                f"{self.max_encoder_tokens}{hint}",
                field=field,
            )
        ids: list[int] = []
        for count in own:
            ids += [front.placeholder_id] * count
            if front.padding_id is not None:
                ids += [front.padding_id] * (front.positions - count)
        return ids, own

    def _header_text(self, side: PromptSide, name: str, ids_name: str) -> str:
        """The encoder prompt's text, which is drawn above its images."""
        limit = self.limits.image_text_chars
        if side.token_ids is not None:
            raise InvalidRequest("must be text: it is drawn above the image", field=ids_name)
        text = side.text or ""
        check_text(text, name)
        if not text.strip():
            raise InvalidRequest("is needed: a question, which is drawn above the image", field=name)
        if len(text) > limit:
            raise InvalidRequest(f"has {len(text)} characters, the limit is {limit}", field=name)
        return text

    def _check_media(self, media: Sequence[Media], name: str) -> None:
        """Checks what needs no decoding: the media's modalities, number and bytes."""
        takes = self.info.modalities
        for modality in dict.fromkeys(one.modality for one in media):
            if modality not in takes:
                text = [] if takes and self.info.encoder_vocab_size is None else ["text"]
                known = [*text, *sorted(takes)]
                only = " only" if len(known) == 1 else ""
                raise InvalidRequest(
                    f"{self.info.name!r} takes {' and '.join(known)}{only}", field=f"{name}.{modality}"
                )
        if media:
            check_items(media, self.limits, f"{name}.{media[-1].modality}")

    def prompt_ids(
        self,
        side: PromptSide,
        name: str,
        ids_name: str,
        task: ResolvedTask,
        truncate: int | None = None,
        answer: int | None = None,
        taken: int = 0,
    ) -> list[int]:
        """The encoder prompt's ids, or a decoder-only model's. `truncate` and `answer` are those of `read`;
        `taken`: encoder positions of the prompt's media, which come on top of its tokens."""
        size, limit, source = self.info.encoder_vocab_size, self.max_prompt_tokens - taken, task.source
        images, places = len(side.media), self._image_places
        if size is None:
            size = self.info.vocab_size + self.info.read_only_ids
        if truncate is not None:
            if images and places is not None:
                raise InvalidRequest("is for prompts without images", field="truncate_prompt_tokens")
            truncate = self._kept(truncate, limit, answer)
        ids = side.token_ids
        if ids is None:
            text = side.text or ""
            if not text and side.media and self._image_tasks is None and places is None:
                return []
            if not text and not side.media:
                raise InvalidRequest("must not be empty", field=name)
            text, around = task.input(text), (source.prefix, source.suffix) if source else ((), ())
            special = source is None
            if self._image_tasks is not None:
                text, special = self._image_tasks.question(text, name), False
                around = self._image_tasks.around if side.media else ((), ())
            if places is not None:
                text = places.text(text, images, name)
            if truncate is None:
                ids = self._tokenizer.encode(text, name, limit, special=special)
            else:
                end: Side | None = "left" if self.info.decoder_only else None
                length = truncate - sum(map(len, around))
                ids = self._tokenizer.encode_truncated(text, name, length, special=special, side=end)
            ids = [*around[0], *ids, *around[1]]
            if places is not None:
                ids = places.spread(ids, images, name)
        elif source:
            raise InvalidRequest("is for a prompt that is text", field="source_language")
        else:
            name = ids_name
            if truncate is not None and len(ids) > truncate:
                ids = ids[-truncate:] if self.info.decoder_only else self._truncated_ids(ids, truncate)
        if not ids:
            raise InvalidRequest("has no tokens", field=name)
        if len(ids) > limit:
            besides = f" next to {taken} encoder positions of media" if taken else ""
            raise InvalidRequest(
                f"has {len(ids)} tokens, the limit is {limit}{besides}: shorten it or set "
                "truncate_prompt_tokens",
                field=name,
            )
        check_ids(ids, name, size)
        front = self.info.front
        if places is not None:
            places.check_ids(ids, images, name)
        elif front is not None and self.info.encoder_vocab_size is not None and front.placeholder_id in ids:
            raise InvalidRequest(
                f"has token {front.placeholder_id}, which stands for a position of an {front.modality}: give "
                f"multi_modal_data.{front.modality} instead",
                field=name,
            )
        return list(ids)

    def _kept(self, truncate: int, limit: int, answer: int | None) -> int:
        """How many tokens of a prompt are read at most."""
        if truncate == -1:
            room = self.max_decoder_tokens - (answer or 1) if self.info.decoder_only else limit
            return max(1, min(room, self._tokenizer.max_length))
        if not 0 < truncate <= limit:
            raise InvalidRequest(
                f"must be 1 to {limit}, or -1 for the model's own length, got {truncate}",
                field="truncate_prompt_tokens",
            )
        return truncate

    def _truncated_ids(self, ids: list[int], length: int) -> list[int]:
        """The first of an encoder prompt's ids, and its EOS."""
        return [*ids[: length - 1], ids[-1]] if ids[-1] in self.info.eos_ids else ids[:length]

    def _prefix(self, side: PromptSide | None, task: ResolvedTask) -> tuple[list[int], list[int]]:
        """What the decoder starts from, and the decoder prompt alone. The start token comes first, unless the
        prompt begins with it or, having tokens, stands in its place."""
        text, ids = (None, None) if side is None else (side.text, side.token_ids)
        name, limit = "decoder_prompt", self.max_decoder_tokens - 1  # one at least is to be generated
        start, target = self.info.decoder_start_id, task.target
        assert start is not None
        if target is not None and start not in self.info.eos_ids:
            # mBART and PLBart start from the target language; the later families from EOS, and then comes the
            # language: forced upon the first token, or before a decoder prompt.
            start = target.token_id
        if ids is None:
            ids = self._tokenizer.encode(text, name, limit, special=False, target=True) if text else []
            if target is not None and ids and start != target.token_id:
                ids = [target.token_id, *ids]
        else:
            name = "decoder_prompt.prompt_token_ids"
            if not ids:
                raise InvalidRequest("has no tokens; leave it out for none", field=name)
            if target is not None:
                raise InvalidRequest("is for a decoder prompt that is text", field="target_language")
        in_its_place = self.info.prompt_is_start and bool(ids)
        prefix = list(ids) if in_its_place or ids[:1] == [start] else [start, *ids]
        if len(prefix) > limit:
            raise InvalidRequest(
                f"has {len(prefix)} tokens with the start token, the limit is {limit}", field=name
            )
        check_ids(ids, name, self.info.vocab_size)
        return prefix, prefix if in_its_place else prefix[1:]

    def target_ids(
        self, target: SingletonPrompt, name: str, given: ParsedPrompt, task: ResolvedTask
    ) -> list[int]:
        """The ids of a target to be scored, which errors call `name`. Raises InvalidRequest."""
        start = len(given.prefix)
        limit = self.max_decoder_tokens - start
        text, ids, _ = decoder_side(target, name)
        if ids is not None:
            name += ".prompt_token_ids"
        elif not text:
            raise InvalidRequest("must not be empty", field=name)
        elif task.target is not None:
            ids = self._tokenizer.encode(text, name, limit, special=False, target=True)
            # A decoder prompt has the language already.
            before = () if given.context else task.target.label_prefix
            ids = [*before, *ids, *task.target.label_suffix]
        elif self._languages:
            raise InvalidRequest("is needed for a target that is text", field="target_language")
        else:
            # The special tokens before Whisper's text are its opening, which the prefix has.
            special = self.info.decoder_start_id is not None and self.info.speech is None
            ids = self._tokenizer.encode(text, name, limit, special=special, target=True)
            ids += sorted(self.info.eos_ids)[:1] if self.info.speech else []
        if not ids:
            raise InvalidRequest("has no tokens", field=name)
        if len(ids) > limit:
            raise InvalidRequest(
                f"has {len(ids)} tokens, after the {start} the decoder starts from the limit is {limit}",
                field=name,
            )
        check_ids(ids, name, self.info.vocab_size)
        return ids

    def _encoder_key(self, ids: list[int], media: Sequence[Media]) -> str:
        digest = hashlib.blake2b(self.info.revision.encode(), digest_size=16)
        digest.update(b"\0" + array("I", ids).tobytes())
        for modality, data, text in media:
            digest.update(f"\0{modality}\0{len(data)}\0{len(text)}\0{text}".encode())
            digest.update(data)
        return digest.hexdigest()


def _shown(side: PromptSide, name: str) -> str | None:
    """A prompt's text, for the answer to repeat."""
    if side.text is not None:
        check_text(side.text, name)
    return side.text
