"""The wire protocols: one package per protocol, none of which imports another; what they share lies beside them."""
