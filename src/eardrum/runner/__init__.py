"""The runner: one model in one process, behind a small HTTP service. Audio in, segments out."""
