"""Durable jobs: recordings that are transcribed later, and that survive restarts of the server and of models' processes.

A client of `eardrum.gateway.service`, like the protocols. Nothing here is imported before the first job.
"""
