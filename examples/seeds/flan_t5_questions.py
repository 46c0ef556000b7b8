"""Questions of every kind, streamed: from NVIDIA DLI's "Encoders and Decoders for Sequence Generation"."""

import sys

from questions import dataset

from tandem import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "google/flan-t5-large")

for entry in dataset:
    P, Q = entry["premise"], entry["question"]
    print(f"{P}: {Q}")
    for token in llm.stream(f"{P}: {Q}", SamplingParams(temperature=0, max_tokens=50)):
        print(token.text, end="", flush=True)
    print("\n")
