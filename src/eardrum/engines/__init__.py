"""Speech engines: one file each, found by name, none imported before it is needed."""
