"""Ollama's API over the same models. Facts about the wire: ollama 0.33 (`api/types.go`, `server/routes.go`)."""
