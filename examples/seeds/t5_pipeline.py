"""Translation and its tokens: from NVIDIA DLI's "Encoders and Decoders for Sequence Generation"."""

import sys

from tandem import pipeline

translator = pipeline("translation_en_to_fr", model=sys.argv[1] if len(sys.argv) > 1 else "t5-base")
print(translator(["Hello World! How's it going?", "What's your name?"]))

text_en = "Hello World! How's it going?"
resp_fr = translator(text_en)
text_fr = resp_fr[0]["translation_text"]

tknzr = translator.tokenizer
tokens_ins = [tknzr.decode(x) for x in tknzr.encode(text_en)]
tokens_in2 = [tknzr.decode(x) for x in translator.preprocess(text_en)["input_ids"][0]]
tokens_out = [tknzr.decode(x) for x in tknzr.encode(text_fr)]
print(f"Inputs Into Preprocessing: {' | '.join(tokens_ins)}")
print(f"Inputs Into Model Forward: {' | '.join(tokens_in2)}")
print(f"Output From Model Forward: {' | '.join(tokens_out)}")
