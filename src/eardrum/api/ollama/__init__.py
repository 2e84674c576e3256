"""Ollama's API over the same models. Source of the wire format: ollama 0.33 (`api/types.go`, `server/routes.go`)."""
