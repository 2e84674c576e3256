"""Live transcription: turns a stream of audio into text during speech."""
