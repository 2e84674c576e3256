"""Live transcription over a WebSocket: audio in, text out while somebody speaks.

See `docs/reference/live.md`.
"""
