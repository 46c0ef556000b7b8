"""What a checkpoint says about its tasks and languages, and what it wants to read for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.errors import InvalidRequest
from tandem.inputs import Prompt, TokensPrompt
from tandem.workers.checkpoint import read_json
from tandem.workers.languages import Language, language, languages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class Task:
    """What a model wants to read before its input, and how it wants to be decoded."""

    prefix: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of transformers' `generate`
    source: Language | None = None  # the input's, for a tokenizer that marks it

    def prompt(self, text: str, tokenizer: Callable[[], Tokenizer], most: int | None = None) -> Prompt:
        """The prompt for a text, cut to `most` tokens where given."""
        text = self.prefix + text
        if self.source is None and most is None:
            return text
        before, behind = (self.source.prefix, self.source.suffix) if self.source else ((), ())
        special = self.source is None  # else they are these two
        room = {} if most is None else {"truncation": True, "max_length": most - len(before) - len(behind)}
        ids = tokenizer()(text, add_special_tokens=special, **room)["input_ids"]
        return TokensPrompt(prompt_token_ids=[*before, *ids, *behind], prompt=text)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a model's folder."""
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return tokenizer


def tasks_of(folder: Path) -> dict[str, Task]:
    """The tasks of config.json's `task_specific_params`: "summarization", "translation_en_to_fr", …"""
    declared = read_json(folder, "config.json").get("task_specific_params") or {}
    return {
        name: Task(
            str(settings.get("prefix") or ""), {key: settings[key] for key in settings if key != "prefix"}
        )
        for name, settings in declared.items()
    }


def translation(folder: Path, tokenizer: Callable[[], Tokenizer], source: str, target: str) -> Task | None:
    """The task that translates from `source` to `target`, codes as the model has them; None where the
    model says nothing of languages.

    They are in its tasks, as T5's; in its tokenizer's vocabulary, as NLLB's, mBART's and M2M100's; or they
    are its only pair, as Marian's. Raises InvalidRequest for languages that it has not.
    """
    tasks = {name: task for name, task in tasks_of(folder).items() if name.startswith("translation_")}
    name = f"translation_{source}_to_{target}"
    if name in tasks:
        return tasks[name]
    own: Any = tokenizer()
    if languages := languages_of(own):
        first = language(languages, target, "tgt_lang")
        assert first is not None
        return Task(
            arguments={"forced_bos_token_id": first.token_id},
            source=language(languages, source, "src_lang"),
        )
    if isinstance(getattr(own, "source_lang", None), str):
        tasks[f"translation_{own.source_lang}_to_{own.target_lang}"] = Task()
    if tasks and name not in tasks:
        raise InvalidRequest(
            f"the model declares no translation {source} to {target}; it has {', '.join(tasks)}",
            field="tgt_lang",
        )
    return tasks.get(name)
