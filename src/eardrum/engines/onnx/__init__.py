"""What engines on onnxruntime, and others whose models give tokens with times, share."""
