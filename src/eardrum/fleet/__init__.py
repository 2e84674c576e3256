"""Replicas of models on the machines of a Ray cluster: a program of its own, the only part of Eardrum that imports Ray."""
