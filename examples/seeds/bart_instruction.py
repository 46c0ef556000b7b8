"""Beam search with lengths and a penalty: from SuperML's "Encoder Decoder LLMs for Instruction Tasks"."""

import sys

from tandem import pipeline

model = pipeline("text2text-generation", sys.argv[1] if len(sys.argv) > 1 else "facebook/bart-large")

instruction = "Summarize the following text:"
text = "The quick brown fox jumps over the lazy dog. This sentence contains all letters of the alphabet."
input_text = f"{instruction} {text}"

summary = model(
    input_text,
    truncation=True,
    max_length=150,
    min_length=40,
    length_penalty=2.0,
    num_beams=4,
    early_stopping=True,
)
print(summary[0]["generated_text"])
