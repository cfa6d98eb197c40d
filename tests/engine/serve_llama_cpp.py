"""Serve a GGUF file with llama.cpp's own HTTP server on 127.0.0.1, from a prebuilt wheel.

usage: serve_llama_cpp.py MODEL.gguf PORT [--pooling mean|rank]

Offers what llama-server offers: /health (503 while loading), /v1/chat/completions, /v1/completions, /v1/messages,
/v1/models and more; with `--pooling mean` /v1/embeddings instead of the completions, with `rank` /v1/rerank.
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp  # type: ignore[import-untyped]

POOLING = {
    "mean": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN,
    "rank": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--pooling", choices=POOLING)
    options = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.port = options.port
    params.n_ctx = 512
    params.n_parallel = 2
    params.warmup = False
    if options.pooling:
        params.embedding = True
        params.pooling_type = POOLING[options.pooling]
    _server = xllamacpp.Server(params)  # serves from threads of its own, as long as it is referenced
    signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
