"""Similarity of models: of what they compute, and of their weights."""
