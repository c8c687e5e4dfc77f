"""Foreign formats to shards, one a file."""
