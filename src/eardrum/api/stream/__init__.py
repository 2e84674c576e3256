"""Live speech over a WebSocket: audio in, text out while somebody speaks. docs/reference/live.md describes the protocol."""
