"""A small synthetic world with exact answers: the embedded default."""
