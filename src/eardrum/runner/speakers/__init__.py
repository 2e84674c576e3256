"""Speaker diarization, which tells the speakers of a recording apart: voice prints of short windows, clustered into speakers."""
