"""The ways to whoever serves a model: our runners, and HTTP servers that are not ours."""
