"""The API of TingWu: transcripts with times in milliseconds over HTTP, and a WebSocket for live audio."""
