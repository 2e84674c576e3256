"""The wire protocols: one package per protocol. No package imports another; shared modules lie beside them."""
