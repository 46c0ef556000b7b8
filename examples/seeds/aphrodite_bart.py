"""Every kind of prompt in one list: from Aphrodite's "Encoder-Decoder Model Support"."""

import sys

from tandem import (
    LLM,
    ExplicitEncoderDecoderPrompt,
    SamplingParams,
    TextPrompt,
    TokensPrompt,
    zip_enc_dec_prompt_lists,
)

llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else "facebook/bart-large-cnn", dtype="float")
tokenizer = llm.get_tokenizer()

single_text_prompt_raw = "Hello, my name is"
single_text_prompt = TextPrompt(prompt="The president of the United States is")
single_tokens_prompt = TokensPrompt(prompt_token_ids=tokenizer.encode("The capital of France is"))

enc_dec_prompt1 = ExplicitEncoderDecoderPrompt(
    encoder_prompt="Summarize this text:",
    decoder_prompt="Summary:",
)
enc_dec_prompt2 = ExplicitEncoderDecoderPrompt(
    encoder_prompt=single_text_prompt,
    decoder_prompt=single_text_prompt_raw,
)
enc_dec_prompt3 = ExplicitEncoderDecoderPrompt(
    encoder_prompt=single_tokens_prompt,
    decoder_prompt=None,
)
zipped_prompt_list = zip_enc_dec_prompt_lists(
    ["An encoder prompt", "Another encoder prompt"],
    ["A decoder prompt", "Another decoder prompt"],
)

prompts = [
    single_text_prompt_raw,
    single_text_prompt,
    single_tokens_prompt,
    enc_dec_prompt1,
    enc_dec_prompt2,
    enc_dec_prompt3,
    *zipped_prompt_list,
]
sampling_params = SamplingParams(
    temperature=0,
    top_p=1.0,
    min_tokens=0,
    max_tokens=20,
)

outputs = llm.generate(prompts, sampling_params)

for output in outputs:
    prompt = output.prompt
    encoder_prompt = output.encoder_prompt
    generated_text = output.outputs[0].text
    print(
        f"Encoder prompt: {encoder_prompt!r}, Decoder prompt: {prompt!r}, Generated text: {generated_text!r}"
    )
