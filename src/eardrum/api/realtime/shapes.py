"""The session object in its two shapes: of today's API, and of the one before it, the beta. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from eardrum.api.realtime import detection
from eardrum.api.realtime.config import LOGPROBS, PHONE_RATE, RATES, Config, included, pcm, refuse_conversation, transcription
from eardrum.api.realtime.values import Part
from eardrum.errors import UnsupportedFeatureError
from eardrum.live import Encoding, Format

TYPES = {"audio/pcm": Encoding.PCM16, "audio/pcmu": Encoding.MULAW, "audio/pcma": Encoding.ALAW}
BETA_TYPES = {"pcm16": Encoding.PCM16, "g711_ulaw": Encoding.MULAW, "g711_alaw": Encoding.ALAW}

OBJECT = "realtime.transcription_session"


@dataclass(frozen=True, slots=True)
class Shape:
    """How a session object is read, and written."""

    changed: Callable[[Config, Part], Config]
    """The configuration after an update; raises `InvalidRequestError`, or `UnsupportedFeatureError` for a session that talks."""
    shown: Callable[[Config, str], dict[str, Any]]
    """The object for a configuration and a session's id."""


def _changed(now: Config, session: Part) -> Config:
    refuse_conversation(session)
    audio = session.part("audio")
    if audio and audio.raw("output"):
        raise UnsupportedFeatureError("This server does not talk: leave session.audio.output out.", param="session.audio.output")
    new = included(now, session)
    given = audio.part("input") if audio else None
    if not given:
        return new
    if wanted := given.part("format"):
        new = replace(new, format=_format(new, wanted))
    return _listening(new, given, "transcription", "noise_reduction")


def _listening(now: Config, given: Part, transcript: str, noise: str) -> Config:
    """What both shapes have, under two names each."""
    if transcript in given:
        if not (wanted := given.part(transcript)):
            raise UnsupportedFeatureError(
                f"This server does nothing but transcribe: {given.path(transcript)} cannot be null.", param=given.path(transcript)
            )
        now = transcription(now, wanted)
    if "turn_detection" in given:
        now = replace(now, wanted=detection.changed(now.detection, given.part("turn_detection")), chosen=True)
    if reduction := given.part(noise):  # of a known kind, and not done: the answer says null
        reduction.choice("type", ("near_field", "far_field"), "")
    return now


def _format(now: Config, given: Part) -> Format:
    names = {encoding: name for name, encoding in TYPES.items()}
    encoding = TYPES[given.choice("type", tuple(TYPES), names[now.format.encoding])]
    if encoding is not Encoding.PCM16:
        given.number("rate", PHONE_RATE, PHONE_RATE, PHONE_RATE)
        return Format(encoding, PHONE_RATE)
    rate = now.format.rate if now.format.encoding is Encoding.PCM16 else now.pcm_rate
    return pcm(given.number("rate", *RATES, rate))


def _shown(config: Config, id: str) -> dict[str, Any]:
    name = next(name for name, encoding in TYPES.items() if encoding is config.format.encoding)
    return {
        "type": "transcription",
        "object": OBJECT,
        "id": id,
        "include": [LOGPROBS] if config.logprobs else None,
        "audio": {
            "input": {
                "format": {"type": name, "rate": config.format.rate} if name == "audio/pcm" else {"type": name},
                "transcription": _transcription(config),
                "noise_reduction": None,
                "turn_detection": config.detection.shown() if config.detection else None,
            }
        },
    }


def _transcription(config: Config) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "model": config.model or None,
        "language": config.language or None,
        "prompt": config.prompt,
    }
    if config.languages:
        shown["languages"] = list(config.languages)
    if config.keywords:
        shown["keywords"] = list(config.keywords)
    return shown


def _beta_changed(now: Config, session: Part) -> Config:
    refuse_conversation(session)
    new = included(now, session)
    if isinstance(session.raw("input_audio_format"), dict):
        wanted = session.part("input_audio_format")
        assert wanted
        new = replace(new, format=_format(new, wanted))
    elif session.raw("input_audio_format") is not None:
        encoding = BETA_TYPES[session.choice("input_audio_format", tuple(BETA_TYPES), "")]
        if encoding is not Encoding.PCM16:
            new = replace(new, format=Format(encoding, PHONE_RATE))
        elif new.format.encoding is not Encoding.PCM16:
            new = replace(new, format=pcm(new.pcm_rate))
    return _listening(new, session, "input_audio_transcription", "input_audio_noise_reduction")


def _beta_shown(config: Config, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": OBJECT,
        "input_audio_format": next(name for name, encoding in BETA_TYPES.items() if encoding is config.format.encoding),
        "input_audio_transcription": _transcription(config),
        "turn_detection": config.detection.shown() if config.detection else None,
        "input_audio_noise_reduction": None,
        "include": [LOGPROBS] if config.logprobs else None,
    }


GA = Shape(_changed, _shown)
BETA = Shape(_beta_changed, _beta_shown)


def of(session: Part, *, beta: bool) -> Shape:
    """The shape in which an update is written, whatever the connection said of itself."""
    if "audio" in session:
        return GA
    flat = any(name in session for name in ("input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"))
    return BETA if beta or flat else GA
