"""Parses the responses of OpenAI-compatible servers: transcripts, transcript streams and errors, in all the shapes that servers
have."""
