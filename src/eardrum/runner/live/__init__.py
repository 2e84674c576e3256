"""Live transcription: a stream of audio becomes text while somebody speaks."""
