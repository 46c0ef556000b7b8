"""Llama 3.2 Vision, with the implicit and the explicit prompt: from vLLM's "Offline Inference with
Encoder-Decoder Multimodal Models".

usage: mllama.py [MODEL [IMAGE]]: a folder or hub id, and an image file; without it a drawing stands in.
"""

import sys
import time

from PIL import Image, ImageDraw

from tandem import LLM, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "meta-llama/Llama-3.2-11B-Vision-Instruct"
if len(sys.argv) > 2:
    stop_sign = Image.open(sys.argv[2])
else:
    stop_sign = Image.new("RGB", (640, 480), "lightblue")
    ImageDraw.Draw(stop_sign).regular_polygon((320, 240, 160), 8, rotation=22, fill="red", outline="white")

llm = LLM(model=model, max_num_seqs=2)

prompts = [
    {  # an implicit prompt
        "prompt": "<|image|><|begin_of_text|>What is the content of this image?",
        "multi_modal_data": {"image": stop_sign},
    },
    {  # an explicit prompt for each side
        "encoder_prompt": {
            "prompt": "<|image|>",
            "multi_modal_data": {"image": stop_sign},
        },
        "decoder_prompt": "<|image|><|begin_of_text|>Please describe the image.",
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
