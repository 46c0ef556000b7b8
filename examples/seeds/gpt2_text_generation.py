"""Samples, then token by token: from NVIDIA DLI's "Encoders and Decoders for Sequence Generation"."""

import sys

from tandem import SamplingParams, pipeline

# Create a text-generation pipeline using GPT-2
generator = pipeline("text-generation", model=sys.argv[1] if len(sys.argv) > 1 else "gpt2")

# Generate 5 sequences of text starting with the prompt "Hello world"
for sequence in generator("Hello world,", max_length=20, do_sample=True, num_return_sequences=5):
    print(sequence["generated_text"])

print("\nGENERATING ONE TOKEN AT A TIME:")
input_str = "Hello world"
print(input_str, end="")
for piece in generator.llm.stream(input_str, SamplingParams(temperature=0, max_tokens=20)):
    print(piece.text.replace("\n", "\\n"), end="", flush=True)
print()
