"""The management routes of llama-swap."""
