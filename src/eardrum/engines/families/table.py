"""Which family a model belongs to, by the `model_type` in its config.json."""

from __future__ import annotations

from eardrum.engines.families.base import Family
from eardrum.engines.families.frames import Ctc, DurationTransducer, Transducer
from eardrum.engines.families.prompted import Canary, Cohere, Glm, Qwen
from eardrum.engines.families.seq2seq import Seq2Seq
from eardrum.engines.families.whisper import Whisper

FAMILIES: dict[str, type[Family]] = {
    "canary": Canary,
    "cohere_asr": Cohere,
    "glmasr": Glm,
    "moonshine": Seq2Seq,
    "moonshine_streaming": Seq2Seq,
    "parakeet_ctc": Ctc,
    "parakeet_rnnt": Transducer,
    "parakeet_tdt": DurationTransducer,
    "qwen3_asr": Qwen,
    "whisper": Whisper,
}
"""Only what the tests run: each of these has been loaded, asked and read with the library."""
