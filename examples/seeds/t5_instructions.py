"""Generated instructions, Seq2SeqTrainer, and what it trained, served: from SuperML's "Encoder Decoder LLMs
for Instruction Tasks".

usage: t5_instructions.py [MODEL [EPOCHS [LEARNING_RATE]]]
"""

import random
import sys

from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from tandem import LLM, SamplingParams

name = sys.argv[1] if len(sys.argv) > 1 else "t5-small"
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 30
learning_rate = float(sys.argv[3]) if len(sys.argv) > 3 else 1e-3


def generate_instruction_dataset(num_samples):
    instructions = [
        "Translate to French: ",
        "Summarize: ",
        "Answer the question: ",
        "Complete the sentence: ",
    ]

    dataset = []
    for _ in range(num_samples):
        instruction = random.choice(instructions)
        if instruction == "Translate to French: ":
            input_text = f"{instruction}Hello, how are you?"
            output_text = "Bonjour, comment allez-vous?"
        elif instruction == "Summarize: ":
            input_text = (
                f"{instruction}The quick brown fox jumps over the lazy dog. "
                "This sentence is often used for typing practice."
            )
            output_text = "A sentence about a fox jumping over a dog, used for typing practice."
        elif instruction == "Answer the question: ":
            input_text = f"{instruction}What is the capital of France?"
            output_text = "The capital of France is Paris."
        else:
            input_text = f"{instruction}The sky is "
            output_text = "blue."

        dataset.append((input_text, output_text))

    return dataset


# Generate a small instruction dataset
instruction_dataset = generate_instruction_dataset(16)

model = AutoModelForSeq2SeqLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)

train_dataset = [
    {"input_ids": tokenizer(text).input_ids, "labels": tokenizer(text_target=label).input_ids}
    for text, label in instruction_dataset
]

training_args = Seq2SeqTrainingArguments(
    output_dir="./instructions",
    num_train_epochs=epochs,
    per_device_train_batch_size=16,
    learning_rate=learning_rate,
)

trainer = Seq2SeqTrainer(
    model=model,
    args=training_args,
    train_dataset=train_dataset,
    data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    processing_class=tokenizer,
)

trainer.train()
trainer.save_model()

llm = LLM("./instructions", dtype="float32")
texts, labels = zip(*sorted(set(instruction_dataset)), strict=True)
outputs = llm.generate(texts, SamplingParams(temperature=0, max_tokens=40))
scores = llm.score(texts, labels)
for output, label, score in zip(outputs, labels, scores, strict=True):
    [target] = score.scores
    print(f"Input: {output.encoder_prompt}")
    print(f"Output: {label} (loss {target.loss:.4f})")
    print(f"Generated: {output.outputs[0].text}")
    print()
