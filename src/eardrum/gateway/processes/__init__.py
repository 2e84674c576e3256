"""How models come to life, and how their processes are watched and ended."""
