"""A short summary: from SuperML's "Encoder Decoder LLMs for Instruction Tasks"."""

import sys

from tandem import pipeline

summarizer = pipeline("summarization", sys.argv[1] if len(sys.argv) > 1 else "google/pegasus-xsum")

text = """
The Internet of Things (IoT) is transforming how we live and work.
It connects everyday devices to the internet, allowing them to send and receive data.
This technology has applications in smart homes, healthcare, agriculture, and more.
However, it also raises concerns about privacy and security.
"""

summary = summarizer(text, truncation=True, max_length=50, min_length=10)
print(summary[0]["summary_text"])
