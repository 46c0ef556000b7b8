"""Beam search with an EncoderDecoderModel: from transformers' "Encoder Decoder Models"."""

import sys

from tandem import pipeline

model = sys.argv[1] if len(sys.argv) > 1 else "patrickvonplaten/bert2bert-cnn_dailymail-fp16"
summarizer = pipeline("summarization", model)

text = (
    "Plants create energy through a process known as photosynthesis. This involves capturing sunlight "
    "and converting carbon dioxide and water into glucose and oxygen."
)

summary = summarizer(text, truncation=True, max_length=60, num_beams=4, early_stopping=True)
print(summary[0]["summary_text"])
