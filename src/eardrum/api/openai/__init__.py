"""OpenAI's HTTP API: transcriptions, translations, chat with speech models, models."""
