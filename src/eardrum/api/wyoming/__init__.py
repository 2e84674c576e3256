"""Wyoming, the speech protocol of Home Assistant: events over TCP, each a line of JSON followed by data and a payload."""
