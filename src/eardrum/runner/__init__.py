"""The runner: one model in one process, behind a small web service. Audio in, segments out."""
