"""The routes by which llama-swap is managed."""
