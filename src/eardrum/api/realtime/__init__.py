"""OpenAI's Realtime API, as far as it transcribes: a WebSocket of JSON events, and keys that pages of a browser may hold."""
