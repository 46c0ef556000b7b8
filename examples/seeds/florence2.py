"""Florence-2, with the implicit and the explicit prompt: from vLLM's "Offline Inference with Encoder-Decoder
Multimodal Models".

usage: florence2.py [MODEL [IMAGE …]]: a folder or hub id, and two images' files; without them drawings stand
in.
"""

import sys
import time

from PIL import Image, ImageDraw

from tandem import LLM, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "florence-community/Florence-2-large"
if len(sys.argv) > 3:
    stop_sign, cherry_blossom = sys.argv[2:4]  # paths
else:
    stop_sign, cherry_blossom = Image.new("RGB", (640, 480), "skyblue"), Image.new("RGB", (480, 640), "white")
    ImageDraw.Draw(stop_sign).regular_polygon((320, 240, 160), 8, rotation=22, fill="red")
    for x, y in ((120, 200), (300, 150), (240, 420)):
        ImageDraw.Draw(cherry_blossom).regular_polygon((x, y, 60), 5, fill="pink")

llm = LLM(model=model, max_num_seqs=8)

prompts = [
    {  # an implicit prompt with a task's token
        "prompt": "<DETAILED_CAPTION>",
        "multi_modal_data": {"image": stop_sign},
    },
    {  # an explicit prompt for each side
        "encoder_prompt": {
            "prompt": "Describe in detail what is shown in the image.",
            "multi_modal_data": {"image": cherry_blossom},
        },
        "decoder_prompt": "",
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
