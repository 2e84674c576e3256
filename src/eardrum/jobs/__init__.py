"""Durable jobs: recordings that are transcribed later, whatever happens to the server or to a model's process meanwhile.

A client of `eardrum.gateway.service`, beside the protocols. Nothing here is imported before the first job.
"""
