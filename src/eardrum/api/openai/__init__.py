"""OpenAI's HTTP API: transcriptions, translations, models."""
