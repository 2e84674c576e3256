"""Fetches a model from the Hugging Face hub: `python -m eardrum.hub REPOSITORY --cache DIR [--pattern P ...]`.

A process of its own, so that the gateway neither imports the hub's library nor waits for it, and stopping a download is
ending a process. Says a line of JSON on stdout per step: `{"plan": {files, total, present}}`, `{"progress": {file, completed}}`
(bytes of all files so far), and last `{"done": {"path"}}` or `{"failed": {...}}`. With `--list` it fetches nothing and says
`{"listing": {files, config}}`.

What is fetched lands in the standard cache. The library starts a file over when it was cut off; files of models are
gigabytes, so here the part that arrived is kept beside the cache's own files and continued. A revision is seen in the
cache only when all its files are there, so a model that is being brought up to date stays usable.
"""
