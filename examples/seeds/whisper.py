"""Whisper, with the implicit and the explicit prompt: from vLLM's "Offline Inference with Encoder-Decoder
Multimodal Models".

usage: whisper.py [MODEL [AUDIO …]]: a folder or hub id, and two audio files; without them a tone stands in.
"""

import sys
import time

import numpy as np

from tandem import LLM, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "openai/whisper-large-v3-turbo"
if len(sys.argv) > 3:
    mary_had_lamb, winning_call = sys.argv[2:4]  # paths
else:
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    mary_had_lamb, winning_call = (tone, 16_000), (tone[::2], 8_000)  # samples and their rate

llm = LLM(model=model, max_num_seqs=16)

prompts = [
    {  # an implicit prompt: the text is the decoder's
        "prompt": "<|startoftranscript|>",
        "multi_modal_data": {"audio": mary_had_lamb},
    },
    {  # an explicit prompt for each side
        "encoder_prompt": {
            "prompt": "",
            "multi_modal_data": {"audio": winning_call},
        },
        "decoder_prompt": "<|startoftranscript|>",
    },
]
sampling_params = SamplingParams(temperature=0, top_p=1.0, max_tokens=64)

start = time.time()
outputs = llm.generate(prompts, sampling_params)
for output in outputs:
    print(f"Decoder prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")
duration = time.time() - start
print("Duration:", duration)
print("RPS:", len(prompts) / duration)
