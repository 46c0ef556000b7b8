"""Samples, then token by token: from NVIDIA DLI's "Encoders and Decoders for Sequence Generation"."""

import sys

from tandem import SamplingParams, pipeline

# Create a text-generation pipeline using GPT-2
generator = pipeline("text-generation", model=sys.argv[1] if len(sys.argv) > 1 else "gpt2")

# Generate 5 sequences of text starting with the prompt "Hello world"
for sequence in generator("Hello world,", max_length=20, num_return_sequences=5):
    print(sequence["generated_text"])

print("GENERATING ALL AT ONCE:")
input_str = "Hello world"
print(f"{(x := generator.preprocess(input_str))}")
print(f"{(x := generator.forward(x, max_new_tokens=20))}")
print(f"{(x := generator.postprocess(x))}")

print("\nGENERATING ONE TOKEN AT A TIME (prep+forward+post):")
print(input_str := "Hello world", end="")
output_buffer = ""
for _ in range(20):
    x = generator.preprocess(input_str + output_buffer)
    x = generator.forward(x, max_new_tokens=1)
    x = generator.postprocess(x)
    next_word = x[0].get("generated_text")[len(input_str + output_buffer) :]
    output_buffer += next_word
    print(next_word.replace("\n", "\\n"), end="")

print("\n\nGENERATING ONE TOKEN AT A TIME (streamed, greedily-sampled):")
print(input_str := "<|endoftext|> Hello world", end="")
for piece in generator.llm.stream(input_str, SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)):
    print(piece.text, end="", flush=True)
print()
