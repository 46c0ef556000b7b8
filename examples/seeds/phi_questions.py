"""The same, of a decoder-only model: from NVIDIA DLI's "Encoders and Decoders for Sequence Generation"."""

import sys

from questions import dataset

from tandem import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "microsoft/phi-1_5")

for entry in dataset:
    P, Q = entry["premise"], entry["question"]
    print("*" * 64)
    for token in llm.stream(f"{P}: {Q}\n\nAnswer: ", SamplingParams(temperature=0, max_tokens=50, stop="\n")):
        print(token.text, end="", flush=True)
    print("\n")
