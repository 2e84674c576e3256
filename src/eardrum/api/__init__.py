"""The edges: one file per wire protocol, each blind to the others."""
