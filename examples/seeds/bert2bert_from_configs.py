"""A model of two configs, a few steps of training, and what came of them, served: from transformers' "Encoder
Decoder Models".

usage: bert2bert_from_configs.py [TOKENIZER [CONFIG]]: folders or hub ids; without CONFIG the
sizes are BERT's
"""

import sys

import torch
from transformers import BertConfig, BertTokenizer, EncoderDecoderConfig, EncoderDecoderModel

from tandem import LLM, SamplingParams

tokenizer = BertTokenizer.from_pretrained(
    sys.argv[1] if len(sys.argv) > 1 else "google-bert/bert-base-uncased"
)

config_encoder = BertConfig.from_pretrained(sys.argv[2]) if len(sys.argv) > 2 else BertConfig()
config_decoder = BertConfig.from_pretrained(sys.argv[2]) if len(sys.argv) > 2 else BertConfig()

config = EncoderDecoderConfig.from_encoder_decoder_configs(config_encoder, config_decoder)
model = EncoderDecoderModel(config=config)

model.config.decoder_start_token_id = tokenizer.cls_token_id
model.config.pad_token_id = tokenizer.pad_token_id

text = "Plants create energy through a process known as photosynthesis."
label = "photosynthesis is how plants create energy."
input_ids = tokenizer(text, return_tensors="pt").input_ids
labels = tokenizer(label, return_tensors="pt").input_ids

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model.train()
for step in range(10):
    loss = model(input_ids=input_ids, labels=labels).loss
    print(f"step {step}: loss {loss:.4f}")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

model.eval()
loss = model(input_ids=input_ids, labels=labels).loss
model.save_pretrained("./bert2bert-from-configs")
tokenizer.save_pretrained("./bert2bert-from-configs")

llm = LLM("./bert2bert-from-configs", dtype="float32")
[score] = llm.score(text, label)[0].scores
print(f"loss {loss:.4f}, served {score.loss:.4f}")

outputs = llm.generate(
    text, SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[tokenizer.sep_token_id])
)
print(outputs[0].outputs[0].text)
