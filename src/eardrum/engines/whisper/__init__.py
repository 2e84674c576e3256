"""What every Whisper shares, whatever library runs it."""
