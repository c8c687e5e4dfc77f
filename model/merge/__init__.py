"""Merging checkpoints: rules over tensors, and the reader and writer that apply them block by block."""
