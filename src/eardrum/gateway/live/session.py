"""A live session: one stream of audio, and one runner after another that transcribes it.

The session is open at once: audio waits while the model loads. While it is idle its model may be unloaded; it continues with
another process when that happens, or when the process dies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager

from msgspec.structs import replace

from eardrum.errors import EardrumError, InvalidRequestError, ModelUnloadedError, RunnerCrashedError, UnsupportedFeatureError
from eardrum.gateway.fallback import find_candidates, is_retryable
from eardrum.gateway.key_usage import AudioMeter
from eardrum.gateway.live.client_events import SessionEventQueue
from eardrum.gateway.live.replay_buffer import SessionHistory
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.places import make_session_shutdown_error
from eardrum.gateway.processes.crashes import CrashSuspicion
from eardrum.gateway.processes.supervisor import LeaseIdleTimer, ModelLease
from eardrum.gateway.service import Service
from eardrum.live import (
    SAMPLE_BYTES,
    AudioEncoding,
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    FinalTranscript,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    SessionEnded,
    SessionPaused,
    SessionSettings,
    UtteranceCommitted,
    UtteranceFailed,
    check_format,
)
from eardrum.transcription import TranscriptionRequest, TranscriptionSummary
from eardrum.wav import ALAW_CODE, FLOAT_CODE, MULAW_CODE, PCM_CODE, build_wav_header

log = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 2 << 20
"""Bytes that may wait for the model; then `feed` waits."""

MAX_CRASHES = 3
"""Processes that may die in a row without a final text in between, if one of them served this session alone."""

ISOLATION_S = 10.0
"""Longest isolation of a session that replays its audio after a crash; other requests wait meanwhile."""

MAX_VOICE_S = 30.0
"""Seconds of an utterance from which its voice is found."""

NOT_RESUMABLE = "A stream in a container cannot be resumed in the middle: open the session again, or send PCM."


class ResumableSession:
    """A live session that outlives the processes that serve it."""

    def __init__(self, service: Service, models: Sequence[Model], settings: SessionSettings):
        self.model = models[0]
        """The model that serves the session; a fallback, if the first one failed to load."""
        self._service = service
        self._fallbacks = list(models[1:])
        self._history = SessionHistory(settings)
        self._buffer = self._history.buffer
        self._events = SessionEventQueue()
        self._wakeup = asyncio.Event()
        self._room = asyncio.Event()
        self._idle_timer: LeaseIdleTimer | None = None
        self._idle = False
        self._process_idle = False  # the process has sent no event since the session became idle
        self._loaded = False
        self._suspicion = CrashSuspicion(MAX_CRASHES, ISOLATION_S)
        self._meter = AudioMeter()
        self._speakers = service.create_utterance_speakers()
        self._stop_error: EardrumError | None = None
        self._ended: SessionEnded | None = None

    # Input and output, for the APIs.

    async def feed(self, audio: bytes) -> None:
        """Add audio; waits while too much is unsent. Audio after `finish` is ignored."""
        if not self._buffer.finished and not self._events.closed:
            self._buffer.feed(audio)
            await self._wait_for_room()

    async def configure(self, settings: SessionSettings) -> None:
        """Change the settings; answered by `CommandRefused` if that is not possible."""
        try:
            settings = prepare_settings(self._service, self.model, settings)
            if self._buffer.fed_bytes and settings.format != self._buffer.settings.format:
                raise InvalidRequestError("The format of the audio can only be changed before the first audio.", param="format")
        except EardrumError as error:
            self._events.put_event(CommandRefused(error))
            return
        self._buffer.add_command(ConfigureCommand(settings))
        self._wakeup.set()

    async def commit(self) -> None:
        """End the utterance; answered by `UtteranceCommitted`, then its text or failure, or by `CommandRefused`."""
        await self._queue_command(CommitCommand())

    async def clear(self) -> None:
        """Discard the utterance in progress; answered by `UtteranceCleared`."""
        await self._queue_command(ClearCommand())

    async def finish(self) -> None:
        """End the audio; answered by the last texts and `SessionEnded`, which ends `stream_events`."""
        self._finish_input()

    def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        """Yield events as they arrive, up to `SessionEnded`.

        Raises:
            ShuttingDownError: the server shuts down; the last texts came before, if there was time.
            EardrumError: the session failed.
        """
        return self._events.stream_events()

    @property
    def is_finished(self) -> bool:
        """Whether more audio is ignored: the client has finished, or the server shuts down."""
        return self._buffer.finished

    @property
    def summary(self) -> TranscriptionSummary:
        """The totals so far, for the log."""
        ended = self._ended or SessionEnded(self._buffer.to_seconds(self._buffer.sent_bytes))
        return TranscriptionSummary(
            ended.language,
            ended.duration,
            windows=self._history.merger.final_count,
            decode_s=ended.decode_s,
            model=self.model.id,
            warnings=list(ended.warnings),
        )

    # Start and end, for `open_session`.

    def start(self) -> asyncio.Task[None]:
        """Start the task that serves the session."""
        task = asyncio.create_task(self._run())
        task.add_done_callback(self._on_run_done)
        return task

    def stop(self, error: EardrumError | None = None) -> None:
        """End the session with an error, by default that of a shutdown: transcribe the audio so far first.

        A finished session ends as usual.
        """
        if not self._buffer.finished:
            self._stop_error = error or make_session_shutdown_error()
        self._finish_input()

    def charge_audio(self) -> None:
        """Charge the audio that was transcribed so far to the client's API key, whose limit may end the session."""
        self._charge_until(self.summary.duration)

    def _charge_until(self, seconds: float) -> None:
        self._meter.charge_until(seconds)
        if self._meter.usage and not self._buffer.finished and (error := self._meter.usage.find_audio_error()):
            self.stop(error)

    def _on_run_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, EardrumError):
            log.error("A live session of %s failed.", self.model.id, exc_info=error)
        self._speakers.close()
        self._events.close(error or make_session_shutdown_error())
        self._room.set()

    # Input.

    @property
    def _is_connected(self) -> bool:
        return self._idle_timer is not None

    def _record_activity(self) -> None:
        """Record that the session is not idle, and wake a `feed` that waits for room."""
        self._idle = False
        if self._idle_timer:
            self._idle_timer.record_activity()
        self._room.set()

    def _finish_input(self) -> None:
        if self._buffer.finished or self._events.closed:
            return
        self._buffer.add_command(FinishCommand())
        self._record_activity()
        self._wakeup.set()
        if not self._is_connected and not self._history.has_pending:
            self._end_session(SessionEnded(self._buffer.to_seconds(self._buffer.fed_bytes)))

    async def _queue_command(self, command: LiveCommand) -> None:
        if not self._buffer.finished and not self._events.closed:
            self._buffer.add_command(command)
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self._record_activity()
        self._wakeup.set()
        while self._buffer.unsent_bytes > MAX_UNSENT_BYTES and not self._events.closed:
            self._room.clear()
            await self._room.wait()

    # Processes.

    async def _run(self) -> None:
        while not self._events.closed:
            try:
                await self._run_process()
            except EardrumError as error:
                self._handle_error(error)
            while self._idle:  # no process is needed until more audio arrives
                self._wakeup.clear()
                await self._wakeup.wait()

    async def _run_process(self) -> None:
        """Serve the session with one process, until either ends."""
        self.model = await self._service.ensure_fetched(self._service.catalog.find_model(self.model.id))
        async with self._service.lease_model(self.model, self._suspicion) as lease:
            if self._events.closed:
                return
            self._loaded, self._process_idle = True, False
            replay = self._history.start_replay()
            self._idle_timer = LeaseIdleTimer(lease, self._service.settings.live.idle_timeout, self._on_idle)
            messages = self._stream_messages(replay.items, self._idle_timer)
            try:
                async with aclosing(lease.upstream.stream_live(replay.settings, messages)) as events:
                    async for event in events:
                        await self._handle_event(event, lease)
            finally:
                self._idle_timer.stop()
                self._idle_timer = None
                self._wakeup.set()

    async def _stream_messages(
        self, replayed: Iterable[bytes | LiveCommand], timer: LeaseIdleTimer
    ) -> AsyncIterator[bytes | LiveCommand]:
        """Yield the messages for one process: first the replayed ones, then those of the buffer until the process is gone."""
        for message in replayed:
            yield message
        while self._idle_timer is timer:  # else another process needs what the buffer holds
            if (taken := self._buffer.take_next()) is not None:
                self._record_activity()
                self._charge_until(self._buffer.to_seconds(self._buffer.sent_bytes))
                yield taken
            else:
                self._wakeup.clear()
                await self._wakeup.wait()

    async def _handle_event(self, event: LiveEvent, lease: ModelLease) -> None:
        self._record_activity()
        self._process_idle = False
        update = self._history.handle_event(event)
        if isinstance(update, UtteranceCommitted) and self._buffer.settings.request.speakers:
            self._speakers.start_search(update.utterance, self._cut_recording(update))
        elif isinstance(update, UtteranceFailed):
            self._speakers.drop(update.utterance)
        if isinstance(update, FinalTranscript):
            lease.confirm_progress()
            self._record_lag(update)
            update = await self._speakers.label(update, self._buffer.settings.request.speaker_options.max_speakers)
            self._charge_until(update.end)  # of a stream in a container, only the texts tell the time
        if isinstance(update, SessionEnded):
            self._end_session(update)
        elif update:
            self._events.put_event(update)
            await self._events.wait_for_room()

    def _cut_recording(self, utterance: UtteranceCommitted) -> bytes:
        """Return the audio of an utterance as a WAV, its beginning if it is very long."""
        format = self._buffer.settings.format
        audio = self._buffer.copy_audio(utterance.start, min(utterance.end, utterance.start + MAX_VOICE_S))
        code = {AudioEncoding.PCM32F: FLOAT_CODE, AudioEncoding.ALAW: ALAW_CODE, AudioEncoding.MULAW: MULAW_CODE}
        return (
            build_wav_header(
                len(audio),
                format.rate,
                format.channels,
                code=code.get(format.encoding, PCM_CODE),
                sample_bytes=SAMPLE_BYTES[format.encoding],
            )
            + audio
        )

    def _record_lag(self, final: FinalTranscript) -> None:
        """Record how much audio had arrived after the end of an utterance; unknown for a stream in a container."""
        if final.text and not self._buffer.is_container:
            arrived = self._buffer.to_seconds(self._buffer.fed_bytes)
            self._service.metrics.live_lags[self.model.id].add_value(max(0.0, arrived - final.end))

    def _end_session(self, ended: SessionEnded) -> None:
        self._ended = ended
        if self._stop_error:
            self._events.close(self._stop_error)
        else:
            self._events.put_event(ended)

    def _on_idle(self) -> None:
        """Let the model be unloaded, because no audio arrived for a while."""
        self._idle = self._process_idle = True
        self._history.drop_silence()
        self._events.put_event(SessionPaused(self._service.settings.live.idle_timeout))

    def _handle_error(self, error: EardrumError) -> None:
        """Continue with another process or model, or raise the error."""
        gone = isinstance(error, RunnerCrashedError) or (self._process_idle and isinstance(error, ModelUnloadedError))
        if gone and not self._suspicion.is_proven:
            self._resume_session(error)
            self._suspicion.suspected &= self._history.has_pending  # with nothing pending, its audio did not cause the crash
            return
        if self._loaded or not self._fallbacks or not is_retryable(error):
            raise error
        log.warning("%s Trying fallback model %s.", error.sentence, self._fallbacks[0].id)
        self.model, self._suspicion = self._fallbacks.pop(0), CrashSuspicion(MAX_CRASHES, ISOLATION_S)

    def _resume_session(self, error: EardrumError) -> None:
        """Prepare the replay of the kept audio for the next process."""
        if not self._process_idle:
            log.warning("%s The live session continues in a new process.", error.sentence)
        is_unresumable = self._history.is_unresumable
        for event in self._history.handle_crash(error):
            self._events.put_event(event)
        if is_unresumable:
            raise RunnerCrashedError(f"{error.message} {NOT_RESUMABLE}")
        if self._buffer.finished and not self._history.has_pending:
            self._end_session(SessionEnded(self._buffer.to_seconds(self._buffer.fed_bytes)))


def find_live_model(service: Service, name: str, request: TranscriptionRequest | None = None) -> Model:
    """Find the model for a live session with `name`.

    Without a name it is the default model, or another one if that does not support the language of the request.

    Raises:
        ModelNotFoundError: there is none.
        UnsupportedFeatureError: it does not support live sessions.
    """
    model = service.find_live_model(name, request)
    _check_live_support(service, model)
    return model


@asynccontextmanager
async def open_session(service: Service, model: Model, settings: SessionSettings) -> AsyncIterator[ResumableSession]:
    """Open a session with a model. It is open at once: audio waits while the model loads.

    When the server shuts down, the session ends by itself: the last texts come, then `stream_events` raises
    `ShuttingDownError`. The server waits until the API has sent them and left the block. Leaving it hangs up.

    Raises:
        InvalidRequestError: there is no such format.
        UnsupportedFeatureError: the model does not support the request.
        BusyError: the model has the maximum of sessions.
        ShuttingDownError: the server shuts down.
    """
    _check_live_support(service, model)
    settings = prepare_settings(service, model, settings)
    others = find_candidates(service.catalog, model, settings.request)[1:]
    session = ResumableSession(service, [model, *(other for other in others if other.supports_live)], settings)
    async with service.live_sessions.register_session(model.id, service.settings.live.max_sessions, session.stop):
        service.metrics.live_sessions[model.label] += 1
        serving = session.start()
        try:
            yield session
        finally:
            service.metrics.live_audio[session.model.label] += session.summary.duration
            session.charge_audio()
            serving.cancel()
            await asyncio.wait([serving])


def prepare_settings(service: Service, model: Model, settings: SessionSettings) -> SessionSettings:
    """Check the settings of a session, and return them with the server's defaults.

    Raises:
        InvalidRequestError: there is no such format.
        UnsupportedFeatureError: the model does not support the request, or the format no speakers.
    """
    check_format(settings.format)
    if settings.request.speakers and settings.format.encoding is AudioEncoding.CONTAINER:
        message = "Speakers can be labelled in PCM and G.711 only: an utterance cannot be cut out of a container."
        raise UnsupportedFeatureError(message, param="diarize")
    return replace(settings, request=service.prepare_request(model, settings.request))


def _check_live_support(service: Service, model: Model) -> None:
    if model.supports_live:
        return
    if model.is_speech_model and model.is_external:
        message = (
            f"{model.id} is served by another server, which takes whole recordings. For live sessions with it, name it under "
            "`models:` with `engine: openai_api` and its address as `url` in `options:`."
        )
    else:
        able = ", ".join(other.id for other in service.catalog.list_visible() if other.supports_live)
        message = f"{model.id} is not a model for speech. Models for live sessions: {able}."
    raise UnsupportedFeatureError(message, param="model")
