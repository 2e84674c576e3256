"""Live transcription over a WebSocket: audio in, text out during speech.

See `docs/reference/live.md`.
"""
