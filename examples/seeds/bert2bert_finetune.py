"""Two checkpoints made one, its loss on a pair, a few steps of training, and what came of them, served: from
transformers' "Encoder Decoder Models".

usage: bert2bert_finetune.py [ENCODER [DECODER]]
"""

import sys

import torch
from transformers import BertTokenizer, EncoderDecoderModel

from tandem import LLM, SamplingParams

encoder = sys.argv[1] if len(sys.argv) > 1 else "google-bert/bert-base-uncased"
decoder = sys.argv[2] if len(sys.argv) > 2 else encoder

tokenizer = BertTokenizer.from_pretrained(encoder)
model = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder)

model.config.decoder_start_token_id = tokenizer.cls_token_id
model.config.pad_token_id = tokenizer.pad_token_id

text = (
    "The tower is 324 metres (1,063 ft) tall, about the same height as an 81-storey building, and the "
    "tallest structure in Paris. Its base is square, measuring 125 metres (410 ft) on each side.During "
    "its construction, the Eiffel Tower surpassed the Washington Monument to become the tallest "
    "man-made structure in the world, a title it held for 41 years until the Chrysler Building in New "
    "York City was  finished in 1930. It was the first structure to reach a height of 300 metres. Due "
    "to the addition of a broadcasting aerial at the top of the tower in 1957, it is now taller than "
    "the Chrysler Building by 5.2 metres (17 ft).Excluding transmitters, the Eiffel Tower is the "
    "second tallest free-standing structure in France after the Millau Viaduct."
)
summary = (
    "the eiffel tower surpassed the washington monument to become the tallest structure in the world. "
    "it was the first structure to reach a height of 300 metres in paris in 1930. it is now taller "
    "than the chrysler building by 5. 2 metres ( 17 ft ) and is the second tallest free - standing "
    "structure in paris."
)

input_ids = tokenizer(text, return_tensors="pt").input_ids
labels = tokenizer(summary, return_tensors="pt").input_ids

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
for step in range(10):
    # the forward function automatically creates the correct decoder_input_ids
    loss = model(input_ids=input_ids, labels=labels).loss
    print(f"step {step}: loss {loss:.4f}")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

loss = model(input_ids=input_ids, labels=labels).loss
model.save_pretrained("./bert2bert")
tokenizer.save_pretrained("./bert2bert")

llm = LLM("./bert2bert", dtype="float32")
[score] = llm.score(text, summary)[0].scores
print(f"loss {loss:.4f}, served {score.loss:.4f}")

outputs = llm.generate(
    text, SamplingParams(temperature=0, max_tokens=60, stop_token_ids=[tokenizer.sep_token_id])
)
print(outputs[0].outputs[0].text)
