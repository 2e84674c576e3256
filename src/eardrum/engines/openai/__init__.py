"""The client's side of OpenAI's HTTP API, for windows of speech: what is sent, what comes back, what goes wrong."""
