"""One modality a file: probing sizes and decoding with limits."""
