"""Text to speech, for every protocol: finds the model and voice that a client means, and synthesizes with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress

from msgspec.structs import replace

from eardrum.errors import EardrumError, InvalidRequestError, ModelNotFoundError, UnsupportedFeatureError
from eardrum.gateway.fallback import FallbackPlan
from eardrum.gateway.key_usage import CURRENT_KEY
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.speech import OPENAI_VOICES, SpeechEvent, SpeechRequest, SpeechSummary

UNNAMED_VOICES = ("", "default", "auto")


def list_voice_models(service: Service) -> list[Model]:
    """List the models that speak and need no download, the default first, as far as the client's key may see them."""
    service.catalog.rescan_if_changed()
    usable = [
        model
        for model in service.catalog.list_visible()
        if model.is_voice_model and model.is_runnable and not model.needs_download and not (model.entry and model.entry.unlisted)
    ]
    default = service.catalog.default_voice
    return sorted(usable, key=lambda model: not default or model.id != default.id)


def list_voices(model: Model) -> list[tuple[str, str]]:
    """List a model's voices by name, with their languages: those of the model, then the names that the config adds."""
    own = dict(model.capabilities.voices)
    named = model.entry.voice_names if model.entry else {}
    return [*own.items(), *((name, own.get(voice, "")) for name, voice in named.items() if name not in own)]


def find_voice_model(service: Service, name: str, voice: str = "", language: str = "") -> Model:
    """Find the model that speaks for a client's model name, and for a voice if the name leaves the model open.

    Args:
        service: the service.
        name: the client's name of the model; empty, or one of OpenAI's names: any model that has the voice.
        voice: the client's name of the voice.
        language: a preferred language, as in `de` or `de-DE`, if no voice is named.

    Raises:
        ModelNotFoundError: there is no such model, or none that speaks.
        UnsupportedFeatureError: the model does not speak.
    """
    if is_any_voice_model(service, name):
        return _choose_model(service, voice, language)
    try:
        model = service.find_model(name)
    except ModelNotFoundError:
        for other in list_voice_models(service):  # LocalAI's clients put the voice into `model`
            if has_voice(other, name):
                return other
        raise
    if not (model.is_voice_model or model.is_external):
        speaking = ", ".join(other.id for other in list_voice_models(service)) or "none"
        raise UnsupportedFeatureError(
            f"{model.id} turns speech into text, and does not speak. Models that speak: {speaking}.", param="model"
        )
    return model


def is_any_voice_model(service: Service, name: str) -> bool:
    """Whether a name leaves open which model speaks."""
    return not name or service.catalog.is_default_voice_name(service.resolve_name(name))


def _choose_model(service: Service, voice: str, language: str) -> Model:
    models = list_voice_models(service)
    if not models:
        raise ModelNotFoundError(
            "There is no model that speaks: install the embedded one with `pip install hibari-tts==0.2.1`, or add one under "
            "`models:` in the config."
        )
    with_voice = (model for model in models if voice not in UNNAMED_VOICES and has_voice(model, voice))
    with_language = (model for model in models if language and voice in UNNAMED_VOICES and find_language_voice(model, language))
    return next(with_voice, None) or next(with_language, None) or models[0]


def has_voice(model: Model, voice: str) -> bool:
    """Whether the model or the config names this voice; OpenAI's names are no voices."""
    return any(voice.lower() == name.lower() for name, _ in list_voices(model))


def find_language_voice(model: Model, language: str) -> str:
    """Return the model's first voice for a language; empty if it has none."""
    wanted = language.replace("_", "-").lower()
    exact = (name for name, own in list_voices(model) if own.lower() == wanted)
    same = (name for name, own in list_voices(model) if own.lower().partition("-")[0] == wanted.partition("-")[0])
    return next(exact, "") or next(same, "")


def choose_voice(model: Model, voice: str, language: str = "") -> str:
    """Return the model's own name of a voice; empty if the model is to choose.

    Raises:
        InvalidRequestError: the model has no such voice; the message lists its voices.
    """
    voices, named = list_voices(model), model.entry.voice_names if model.entry else {}
    if voice in UNNAMED_VOICES or voice == model.id:
        voice = find_language_voice(model, language) if language else ""
        return named.get(voice, voice)
    found = next((name for name, _ in voices if name == voice), "") or next(
        (name for name, _ in voices if name.lower() == voice.lower()), ""
    )
    if found:
        return named.get(found, found)
    if voice.lower() in OPENAI_VOICES and not model.is_external:
        return next((name for name, _ in voices if name.lower().endswith(f"_{voice.lower()}")), "")
    if model.is_external or not model.capabilities.voices:  # it knows its voices itself
        return voice
    listed = ", ".join(name for name, _ in voices)
    raise InvalidRequestError(
        f"{model.id} has no voice {voice[:80]!r}. Its voices: {listed}. OpenAI's names, such as alloy, stand for one of them.",
        param="voice",
    )


def get_voice_language(model: Model, voice: str) -> str:
    """Return the language of a model's own voice, as in `en-US`; of its first one if `voice` is empty. Empty if unknown."""
    own = dict(model.capabilities.voices)
    return own.get(voice or next(iter(own), ""), "")


async def stream_speech(
    service: Service, model: Model, request: SpeechRequest, text: str | AsyncIterator[str]
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a synthesis as they come. Closing the iterator cancels the work.

    If a process dies before the first audio, a text that is complete is spoken by another process, or by a fallback.

    Raises:
        EardrumError: any failure, worded for the client.
    """
    with service.metrics.measure_speech(model.label) as timer:
        plan, has_audio = FallbackPlan(list(_find_candidates(service, model, request))), False
        while True:
            timer.model = plan.model.label
            try:
                chosen = await service.ensure_fetched(plan.model)
                timer.model = chosen.label
                own = request if chosen.id == model.id else adapt_to_fallback(request, model, chosen)
                async with (
                    service.lease_model(chosen, plan.suspicion) as lease,
                    aclosing(lease.upstream.speak(own, text)) as events,
                ):
                    async for event in events:
                        if isinstance(event, bytes):
                            has_audio = True
                            timer.record_audio()
                        elif isinstance(event, SpeechSummary):
                            timer.record_summary(event)
                            if usage := CURRENT_KEY.get():
                                usage.charge_audio(event.duration)
                        yield event
                return
            except EardrumError as error:
                plan.handle_failure(error, repeatable=isinstance(text, str) and not has_audio)


def adapt_to_fallback(request: SpeechRequest, model: Model, fallback: Model) -> SpeechRequest:
    """Return the request for a fallback of the model, with a voice of the same language."""
    return replace(request, voice=choose_voice(fallback, "", get_voice_language(model, request.voice)))


def _find_candidates(service: Service, model: Model, request: SpeechRequest) -> Iterator[Model]:
    """Yield the model and those of its fallbacks that speak the language of the voice."""
    yield model
    language = get_voice_language(model, request.voice)
    for name in model.fallback:
        with suppress(ModelNotFoundError):
            other = service.catalog.find_model(name)
            if other.is_voice_model and other.id != model.id and (not language or find_language_voice(other, language)):
                yield other
