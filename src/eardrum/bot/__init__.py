"""A bot for Telegram: an ordinary client of the public API, for this server or any other with OpenAI's API."""
