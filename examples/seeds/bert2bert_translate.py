"""Ids without special tokens, to an EncoderDecoderModel: from transformers' "Encoder Decoder Models"."""

import sys

from transformers import AutoTokenizer

from tandem import LLM, TokensPrompt

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "google/bert2bert_L-24_wmt_en_de")
tokenizer = AutoTokenizer.from_pretrained(llm.folder, pad_token="<pad>", eos_token="</s>", bos_token="<s>")

# Input sentence to translate
input_text = "Plants create energy through a process known as"

# Encode the input text
inputs = tokenizer(input_text, add_special_tokens=False).input_ids

# Generate the translated output
outputs = llm.generate(TokensPrompt(prompt_token_ids=inputs))[0]

print("Translated text:", outputs.outputs[0].text)
