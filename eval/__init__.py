"""Embedder to Report."""
