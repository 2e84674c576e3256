"""The families of models that `transformers` runs: how each is asked and how its answer is read.

Nothing here imports a library: a family is given the loaded model and processor.
"""
