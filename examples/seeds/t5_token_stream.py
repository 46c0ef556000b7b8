"""Tokens as they come: from NVIDIA DLI's "Encoders and Decoders for Sequence Generation"."""

import sys

from tandem import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "t5-base")
input_raw_str = "translate English to French: Hello World! How's it going?"

for token in llm.stream(input_raw_str, SamplingParams(temperature=0, max_tokens=50)):
    print(token.text, end="|", flush=True)
print()
