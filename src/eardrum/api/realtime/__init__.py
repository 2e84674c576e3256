"""OpenAI's Realtime API for transcription: a WebSocket of JSON events, and client secrets for pages in browsers."""
