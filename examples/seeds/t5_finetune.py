"""Trainer, and what it has trained, served: from SuperML's "Encoder Decoder LLMs for Instruction Tasks"."""

import sys

import torch
from transformers import T5ForConditionalGeneration, T5Tokenizer, Trainer, TrainingArguments

from tandem import LLM, SamplingParams

name = sys.argv[1] if len(sys.argv) > 1 else "t5-small"
model = T5ForConditionalGeneration.from_pretrained(name)
tokenizer = T5Tokenizer.from_pretrained(name)

# Dummy dataset for illustration
train_texts = [
    "Translate to French: Hello, world!",
    "Summarize: The quick brown fox jumps over the lazy dog.",
]
train_labels = ["Bonjour, le monde!", "A fox jumps over a dog."]

train_encodings = tokenizer(train_texts, truncation=True, padding=True)
train_label_encodings = tokenizer(train_labels, truncation=True, padding=True)


class Dataset(torch.utils.data.Dataset):
    def __init__(self, encodings, labels):
        self.encodings = encodings
        self.labels = labels

    def __getitem__(self, idx):
        item = {key: torch.tensor(val[idx]) for key, val in self.encodings.items()}
        item["labels"] = torch.tensor(self.labels["input_ids"][idx])
        return item

    def __len__(self):
        return len(self.encodings["input_ids"])


train_dataset = Dataset(train_encodings, train_label_encodings)

training_args = TrainingArguments(
    output_dir="./results",
    num_train_epochs=3,
    per_device_train_batch_size=16,
    warmup_steps=500,
    weight_decay=0.01,
)

trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=train_dataset,
    processing_class=tokenizer,  # is saved with the model
)

trainer.train()
trainer.save_model()

llm = LLM("./results", dtype="float32")
outputs = llm.generate(train_texts, SamplingParams(temperature=0, max_tokens=20))
scores = llm.score(train_texts, train_labels)
for output, score in zip(outputs, scores, strict=True):
    [label] = score.scores
    print(f"{output.encoder_prompt} -> {output.outputs[0].text} (the label's loss is {label.loss:.4f})")
