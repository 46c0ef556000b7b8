"""A model of two languages: from SuperML's "Encoder Decoder LLMs for Instruction Tasks"."""

import sys

from tandem import LLM

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "Helsinki-NLP/opus-mt-en-fr")

text = "Hello, how are you doing today?"
translated = llm.generate(text)
print(translated[0].outputs[0].text)
