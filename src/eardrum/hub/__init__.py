"""Downloads a model from the Hugging Face hub: `python -m eardrum.hub REPOSITORY --cache DIR [--pattern P ...]`.

It is a process of its own, so that the gateway neither imports the hub's library nor waits for it, and stopping a download means
ending a process. It writes a line of JSON to stdout per step: `{"plan": {files, total, present}}`, `{"progress": {file,
completed}}` (bytes of all files so far), and last `{"done": {"path"}}` or `{"failed": {...}}`. With `--list` it downloads
nothing and writes
`{"listing": {files, config}}`.

Files land in the standard cache. The library starts a file over when it was cut off; files of models are gigabytes, so here
the part that arrived is kept beside the cache's own files and continued. A revision appears in the cache only when all its files
are there, so a model stays usable while it is updated.
"""
