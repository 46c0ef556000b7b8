"""A translation by a text-to-text model: from SuperML's "Encoder Decoder LLMs for Instruction Tasks"."""

import sys

from tandem import LLM

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "t5-small")

input_text = "translate English to German: How are you?"

outputs = llm.generate(input_text)
print(outputs[0].outputs[0].text)
