"""Write the tiny model of `engine/make_tiny_gguf.py` with the tokens that a completion in the middle of a text needs.

usage: fill_in_gguf.py OUT.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf

sys.path.append(str(Path(__file__).parents[1] / "engine"))

import make_tiny_gguf

PREFIX, SUFFIX, MIDDLE = (make_tiny_gguf.TOKENS.index(f"<0x{byte:02X}>") for byte in (1, 2, 3))


def main() -> None:
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    make_tiny_gguf.add_shape(writer)
    make_tiny_gguf.add_tokenizer(writer)
    writer.add_uint32("tokenizer.ggml.fim_pre_token_id", PREFIX)
    writer.add_uint32("tokenizer.ggml.fim_suf_token_id", SUFFIX)
    writer.add_uint32("tokenizer.ggml.fim_mid_token_id", MIDDLE)
    make_tiny_gguf.add_weights(writer, seed=0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
