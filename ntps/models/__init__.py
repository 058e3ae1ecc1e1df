"""Causal language models from anywhere, and one pass of a model over texts."""
