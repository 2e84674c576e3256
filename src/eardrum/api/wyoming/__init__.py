"""Wyoming, the speech protocol of Home Assistant: events over TCP, each a line of JSON with data and a payload behind it."""
