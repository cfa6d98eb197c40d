"""Write a tiny llama model with random weights as GGUF (about 470 KB): a real file for a real engine.

usage: make_tiny_gguf.py OUT.gguf [SEED]
It loads in about 0.1 s and answers with words at random, token by token, as any model does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

EMBEDDING, HEADS, LAYERS, FEED_FORWARD, CONTEXT = 64, 4, 2, 128, 2048

WORDS = ["the", "a", "this", "every", "small", "model", "unit", "slice", "world", "starts", "stops", "loads", "swaps"]
WORDS += ["sings", "fast", "quietly", "twice", "and", "hello"]
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"▁{word}" for word in WORDS)]
FIRST_WORD = len(TOKENS) - len(WORDS)
UNKNOWN, BEGIN, END = range(3)


def write_model(path: Path, seed: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    add_shape(writer)
    add_tokenizer(writer)
    add_weights(writer, seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Add a vocabulary of a few words and all bytes, so that every text can be written in it."""
    kind = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * 3 + [-1000.0] * 256 + [-1.0] * len(WORDS))
    writer.add_token_types([kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256, *[kind.NORMAL] * len(WORDS)])
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


def add_weights(writer: gguf.GGUFWriter, seed: int) -> None:
    random = np.random.default_rng(seed)

    def noise(*shape: int) -> npt.NDArray[np.float32]:
        return (random.standard_normal(shape) * 0.05).astype(np.float32)

    # One dimension is large in whatever was read, and lifts the words far above all other tokens. A random byte would
    # be half a character, which no engine sends; and a random </s> would end an answer early.
    read, said = noise(len(TOKENS), EMBEDDING), noise(len(TOKENS), EMBEDDING)
    read[:, 0] = 4
    said[:, 0] = -2
    said[FIRST_WORD:, 0] = 2

    ones = np.ones(EMBEDDING, np.float32)
    writer.add_tensor("token_embd.weight", read)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", said)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", noise(EMBEDDING, EMBEDDING))
        for part in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", noise(FEED_FORWARD, EMBEDDING))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", noise(EMBEDDING, FEED_FORWARD))


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
