"""Commands that are more than a call: what models there are, and getting them."""
