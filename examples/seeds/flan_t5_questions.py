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

# EXERCISE 1: one-shot conditioning, the example in front of the question, both in the decoder's prompt.
for entry in dataset:
    P, Q = entry["premise"], entry["question"]
    FSQ, FSA = entry["few_shot"]["question"], entry["few_shot"]["answer"]
    prompt = {"encoder_prompt": f"{P}: ", "decoder_prompt": f"{FSQ}? {FSA}</s>{Q}? "}
    print(f"{P}: {Q}")
    for token in llm.stream(prompt, SamplingParams(temperature=0, max_tokens=50)):
        print(token.text, end="", flush=True)
    print("\n")
