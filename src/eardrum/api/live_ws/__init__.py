"""Live transcription over a WebSocket: audio in, text out while somebody speaks. docs/live.md describes the protocol."""
