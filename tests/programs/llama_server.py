"""A real `llama-server`: llama.cpp's own HTTP server, as the package xllamacpp brings it.

python tests/programs/llama_server.py --port 5800 -m MODEL.gguf
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-m", "--model", required=True)
    known, _ = parser.parse_known_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    params = xllamacpp.CommonParams()
    params.model.path = known.model
    params.hostnames, params.port = ["127.0.0.1"], known.port
    params.n_ctx, params.n_parallel = 2048, 1
    params.sampling.temp = 0.0  # the same answer every time
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
