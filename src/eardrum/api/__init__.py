"""The wire protocols: one package per protocol. No package imports another; shared modules are next to them."""
