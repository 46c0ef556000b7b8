"""The bundled model through Tandem and through transformers, token for token."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

from tandem import LLM, SamplingParams
from tandem.quickstart import PATH

SENTENCES = [
    "Hi.", "I'm tired.", "Where do you live?", "I don't know.", "He is my brother.", "Call me tomorrow.",
    "She left early.", "We are hungry!", "Don't be late.", "Is it raining?", "I lost my keys.",
    "Tom can swim.", "Open the door, please.", "They have two dogs.", "What time is it?", "Nobody came.",
    "It's too expensive.", "My house is on fire!", "You were right.", "Can I help you?", "I want to go home.",
]  # fmt: skip
SIZE_LIMIT = 12 * 2**20


def test_greedy_is_the_same_token_for_token() -> None:
    prompts = [
        f"translate English to {language}: {sentence}"
        for sentence in SENTENCES
        for language in ("French", "German")
    ]
    tokenizer = AutoTokenizer.from_pretrained(PATH, local_files_only=True)
    model = T5ForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    expected = []
    for prompt in prompts:
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"), do_sample=False, max_new_tokens=48)
        expected.append((ids[0, 1:].tolist(), tokenizer.decode(ids[0], skip_special_tokens=True)))
    with LLM(dtype="float32", max_num_seqs=8) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)
    assert [(o.outputs[0].token_ids, o.outputs[0].text) for o in outputs] == expected


def test_it_is_as_small_as_its_card_says() -> None:
    assert (PATH / "model.safetensors").stat().st_size <= SIZE_LIMIT
