"""A T5 folder without weights: config, generation defaults and a tokenizer trained on a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = ["translate English to French: the cat sat on the mat", "le chat est sur le tapis", "a b c d e f g"]
PAD, EOS, UNK = 0, 1, 2
VOCAB = 128  # the model's; the tokenizer's is smaller


def write_model(
    folder: Path,
    *,
    generation: dict[str, Any] | None = None,
    chat_template: str | None = None,
    **config: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "model_type": "t5",
        "vocab_size": VOCAB,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_heads": 2,
        "num_layers": 1,
        "relative_attention_num_buckets": 32,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": PAD,
        "is_encoder_decoder": True,
        "task_specific_params": {
            "translation_en_to_fr": {"prefix": "translate English to French: "},
            "translation_en_to_de": {"prefix": "translate English to German: "},
        },
        **config,
    }
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", EOS)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
    ).save_pretrained(folder)
    return folder
