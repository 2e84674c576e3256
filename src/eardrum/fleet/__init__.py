"""Replicas of models on the machines of a Ray cluster: a separate program, the only part of Eardrum that imports Ray."""
