"""A LiveKit agent that turns each participant's speech into text, by Eardrum's OpenAI API."""

import os

from livekit.agents import Agent, AgentSession, JobContext, WorkerOptions, cli
from livekit.plugins import openai, silero


def create_speech_to_text() -> openai.STT:
    """Eardrum as LiveKit's speech-to-text. Any key will do unless the server has `api_keys`."""
    return openai.STT(
        base_url=os.environ.get("EARDRUM_URL", "http://127.0.0.1:8100/v1"),
        api_key=os.environ.get("EARDRUM_KEY", "none"),
        model="whisper-1",
        language=os.environ.get("EARDRUM_LANGUAGE", "en"),
    )


async def run(job: JobContext) -> None:
    """Print the text of everything that is said in the room."""
    await job.connect()
    session: AgentSession[None] = AgentSession(stt=create_speech_to_text(), vad=silero.VAD.load())

    @session.on("user_input_transcribed")
    def show(event: object) -> None:
        print(getattr(event, "transcript", ""), flush=True)

    await session.start(agent=Agent(instructions="You listen."), room=job.room)


if __name__ == "__main__":
    cli.run_app(WorkerOptions(entrypoint_fnc=run))
