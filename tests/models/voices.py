"""Scripted voices of Piper, Kokoro and Supertonic: graphs of a few kilobytes with the inputs, outputs and files of the real ones.

They speak in tones, one for each id that they get, so that the audio says which ids arrived, in which order and at which pace.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from tests.models.onnx_asr import build_constant, build_float_input, build_integer_input, build_model

PIPER_RATE, KOKORO_RATE = 22_050, 24_000
PIPER_ID_S, KOKORO_ID_S = 0.03, 0.07
"""Length of a tone at the voice's own pace."""
LOWEST_HZ, STEP_HZ = 200.0, 50.0
"""The tone of id 0, and from one id to the next."""

SYMBOLS = ("_", "^", "$", *string.ascii_letters, *string.digits, " ", *".,;:!?'\u0308\u0301\u0303", *"ɡɑɛɪʊːˈˌŋəʃɐɾɲθβ")
SUPERTONIC_RATE, SUPERTONIC_CHUNK, SUPERTONIC_FACTOR = 44_100, 512, 6
SUPERTONIC_LETTERS = (*string.ascii_letters, *string.digits, " ", *"<>/.,;:!?'\"-()&%", "\u0308", "\u0301", "\u0303", "ß", "€")
SUPERTONIC_STYLES = {"style_ttl": (1, 50, 256), "style_dp": (1, 8, 16)}
PIPER_IDS = {symbol: [number] for number, symbol in enumerate(SYMBOLS)}


def build_piper(
    directory: Path,
    name: str = "en_US-tones-medium",
    *,
    rate: int = PIPER_RATE,
    phonemes: str = "text",
    espeak_voice: str = "en-us",
    speakers: tuple[str, ...] = (),
) -> Path:
    """A voice of Piper in `directory`. The tones of a voice with several speakers are 10 Hz higher for each."""
    directory.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Gather", ["scales", "one"], ["length_scale"]),
        helper.make_node("Mul", ["length_scale", "tone"], ["per"]),
        helper.make_node("Identity", ["input"], ["ids"]),
        *(
            [
                helper.make_node("Cast", ["sid"], ["speaker"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", ["speaker", "ten"], ["higher"]),
            ]
            if speakers
            else [helper.make_node("Identity", ["zero_list"], ["higher"])]
        ),
        *list_tone_nodes(),
        helper.make_node("Reshape", ["tones", "shape"], ["output"]),
    ]
    constants = [
        *list_tone_constants(rate),
        build_constant("one", np.array(1, np.int64)),
        build_constant("ten", np.array(10, np.float32)),
        build_constant("zero_list", np.zeros(1, np.float32)),
        build_constant("tone", np.array(round(PIPER_ID_S * rate), np.float32)),
        build_constant("shape", np.array([1, 1, 1, -1], np.int64)),
    ]
    inputs = [build_integer_input("input", 1, "n"), build_integer_input("input_lengths", 1), build_float_input("scales", 3)]
    inputs += [build_integer_input("sid", 1)] if speakers else []
    onnx.save(
        build_model(nodes, constants, inputs, [build_float_input("output", 1, 1, 1, "time")]), str(directory / f"{name}.onnx")
    )
    settings = {
        "audio": {"sample_rate": rate, "quality": "medium"},
        "espeak": {"voice": espeak_voice},
        "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8},
        "phoneme_type": phonemes,
        "phoneme_id_map": PIPER_IDS,
        "num_symbols": 256,
        "num_speakers": max(len(speakers), 1),
        "speaker_id_map": {speaker: number for number, speaker in enumerate(speakers)},
    }
    (directory / f"{name}.onnx.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def build_kokoro(directory: Path, *voices: str, graph: str = "onnx/model.onnx") -> Path:
    """A Kokoro in `directory`. A style's row is its own number in thousandths, which the loudness of the audio tells."""
    path = directory / graph
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("Div", ["tone", "speed"], ["per_list"]),
        helper.make_node("Squeeze", ["per_list"], ["per"]),
        helper.make_node("Identity", ["input_ids"], ["ids"]),
        helper.make_node("Identity", ["zero_list"], ["higher"]),
        *list_tone_nodes(),
        helper.make_node("Gather", ["style", "zero"], ["level_list"], axis=1),
        helper.make_node("Mul", ["tones", "level_list"], ["waveform"]),
    ]
    constants = [
        *list_tone_constants(KOKORO_RATE),
        build_constant("zero_list", np.zeros(1, np.float32)),
        build_constant("tone", np.array([round(KOKORO_ID_S * KOKORO_RATE)], np.float32)),
        build_constant("zero", np.array([0], np.int64)),
    ]
    inputs = [build_integer_input("input_ids", 1, "n"), build_float_input("style", 1, 256), build_float_input("speed", 1)]
    onnx.save(build_model(nodes, constants, inputs, [build_float_input("waveform", 1, "time")]), str(path))
    table = np.repeat(np.arange(1, 511, dtype=np.float32)[:, None] / 1000 + 0.2, 256, axis=1)
    (directory / "voices").mkdir(exist_ok=True)
    for voice in voices or ("af_heart", "bf_emma"):
        (directory / "voices" / f"{voice}.bin").write_bytes(table.tobytes())
    return directory


def build_supertonic(directory: Path, *voices: str) -> Path:
    """A Supertonic in `directory`. Its estimator stretches the text over the frames and counts its steps; its vocoder speaks in
    tones, whose loudness tells the number of steps."""
    (directory / "onnx").mkdir(parents=True, exist_ok=True)
    (directory / "voice_styles").mkdir(exist_ok=True)
    for name, graph in build_supertonic_graphs().items():
        onnx.save(graph, str(directory / "onnx" / f"{name}.onnx"))
    settings = {
        "ae": {"sample_rate": SUPERTONIC_RATE, "base_chunk_size": SUPERTONIC_CHUNK},
        "ttl": {"latent_dim": 2, "chunk_compress_factor": SUPERTONIC_FACTOR},
    }
    (directory / "onnx" / "tts.json").write_text(json.dumps(settings))
    indices = [-1] * 0x2100
    for number, letter in enumerate(SUPERTONIC_LETTERS):
        indices[ord(letter)] = number
    (directory / "onnx" / "unicode_indexer.json").write_text(json.dumps(indices))
    for voice in voices or ("F1", "M1"):
        style = {name: {"dims": shape, "data": np.zeros(shape).tolist()} for name, shape in SUPERTONIC_STYLES.items()}
        (directory / "voice_styles" / f"{voice}.json").write_text(json.dumps(style))
    return directory


def build_supertonic_graphs() -> dict[str, onnx.ModelProto]:
    channels, frame = 2 * SUPERTONIC_FACTOR, SUPERTONIC_CHUNK * SUPERTONIC_FACTOR
    mask = build_float_input("text_mask", 1, 1, "n")
    ids = build_integer_input("text_ids", 1, "n")
    style_ttl, style_dp = (build_float_input(name, *shape) for name, shape in SUPERTONIC_STYLES.items())
    duration = build_model(
        [
            helper.make_node("ReduceSum", ["text_mask", "axes"], ["count"], keepdims=0),
            helper.make_node("Mul", ["count", "seconds"], ["duration"]),
        ],
        [
            build_constant("axes", np.array([1, 2], np.int64)),
            build_constant("seconds", np.array(frame / SUPERTONIC_RATE, np.float32)),
        ],
        [ids, style_dp, mask],
        [build_float_input("duration", 1)],
    )
    encoder = build_model(
        [
            helper.make_node("Cast", ["text_ids"], ["numbers"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "one"], ["text_emb"]),
        ],
        [build_constant("one", np.array([1], np.int64))],
        [ids, style_ttl, mask],
        [build_float_input("text_emb", 1, 1, "n")],
    )
    latent = build_float_input("noisy_latent", 1, channels, "t")
    steps = [build_float_input(name, 1) for name in ("current_step", "total_step")]
    estimator = build_model(
        [
            helper.make_node("Shape", ["latent_mask"], ["shape"]),
            helper.make_node(
                "Resize",
                ["text_emb", "", "", "shape"],
                ["stretched"],
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            ),
            helper.make_node("Add", ["current_step", "unit"], ["done"]),
            helper.make_node("Mul", ["latent_mask", "done"], ["counted"]),
            helper.make_node("Concat", ["stretched", "counted", *["latent_mask"] * (channels - 2)], ["latent"], axis=1),
        ],
        [build_constant("unit", np.array([1], np.float32))],
        [latent, build_float_input("text_emb", 1, 1, "n"), style_ttl, mask, build_float_input("latent_mask", 1, 1, "t"), *steps],
        [build_float_input("latent", 1, channels, "t")],
    )
    vocoder = build_model(
        [
            helper.make_node("Split", ["latent", "parts"], ["text", "progress", "rest"], axis=1),
            helper.make_node("Cast", ["text"], ["ids"], to=onnx.TensorProto.INT64),
            helper.make_node("Identity", ["zero_list"], ["higher"]),
            helper.make_node("Identity", ["frame"], ["per"]),
            *list_tone_nodes(),
            helper.make_node("ReduceMax", ["progress"], ["steps"], keepdims=0),
            helper.make_node("Mul", ["steps", "hundredth"], ["loudness"]),
            helper.make_node("Mul", ["tones", "loudness"], ["quiet"]),
            helper.make_node("Unsqueeze", ["quiet", "first"], ["wav"]),
        ],
        [
            *list_tone_constants(SUPERTONIC_RATE),
            build_constant("parts", np.array([1, 1, channels - 2], np.int64)),
            build_constant("zero_list", np.zeros(1, np.float32)),
            build_constant("frame", np.array(frame, np.float32)),
            build_constant("hundredth", np.array(0.05, np.float32)),
            build_constant("first", np.array([0], np.int64)),
        ],
        [build_float_input("latent", 1, channels, "t")],
        [build_float_input("wav", 1, "samples")],
    )
    return {"duration_predictor": duration, "text_encoder": encoder, "vector_estimator": estimator, "vocoder": vocoder}


def list_tone_nodes() -> list[onnx.NodeProto]:
    """From `ids`, `per` (samples of a tone) and `higher` (Hz) to `tones`."""
    return [
        helper.make_node("Reshape", ["ids", "flat"], ["list"]),
        helper.make_node("Size", ["list"], ["count"]),
        helper.make_node("Cast", ["count"], ["count_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["count_float", "per"], ["total"]),
        helper.make_node("Range", ["begin", "total", "step"], ["times"]),
        helper.make_node("Div", ["times", "per"], ["slots_exact"]),
        helper.make_node("Floor", ["slots_exact"], ["slots_float"]),
        helper.make_node("Mul", ["slots_float", "per"], ["starts"]),
        helper.make_node("Sub", ["times", "starts"], ["inside"]),
        helper.make_node("Cast", ["slots_float"], ["slots_whole"], to=onnx.TensorProto.INT64),
        helper.make_node("Sub", ["count", "unit"], ["last"]),
        helper.make_node("Min", ["slots_whole", "last"], ["slots"]),
        helper.make_node("Gather", ["list", "slots"], ["chosen"]),
        helper.make_node("Cast", ["chosen"], ["chosen_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["chosen_float", "hertz_step"], ["hertz_above"]),
        helper.make_node("Add", ["hertz_above", "hertz_lowest"], ["hertz_own"]),
        helper.make_node("Add", ["hertz_own", "higher"], ["hertz"]),
        helper.make_node("Mul", ["inside", "hertz"], ["cycles"]),
        helper.make_node("Mul", ["cycles", "turn"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["waves"]),
        helper.make_node("Mul", ["waves", "level"], ["tones"]),
    ]


def list_tone_constants(rate: int) -> list[onnx.TensorProto]:
    numbers = {
        "begin": 0,
        "step": 1,
        "hertz_step": STEP_HZ,
        "hertz_lowest": LOWEST_HZ,
        "turn": 2 * np.pi / rate,
        "level": 0.5,
    }
    return [
        build_constant("flat", np.array([-1], np.int64)),
        build_constant("unit", np.array(1, np.int64)),
        *(build_constant(name, np.array(number, np.float32)) for name, number in numbers.items()),
    ]


def read_ids(audio: np.ndarray, rate: int, tone_s: float) -> list[int]:
    """The ids that a scripted voice was given, from its tones."""
    length = round(tone_s * rate)
    tones = audio[: len(audio) // length * length].reshape(-1, length)
    spectra = np.abs(np.fft.rfft(tones * np.hanning(length), 8 * length))
    return [round((float(hertz) - LOWEST_HZ) / STEP_HZ) for hertz in spectra.argmax(axis=1) * rate / (8 * length)]
