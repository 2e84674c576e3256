"""Speaker diarization, which labels the speakers of a recording: voice prints of short windows, clustered into speakers."""
