"""What engines on PyTorch share. Nothing here imports it."""
