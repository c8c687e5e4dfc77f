"""Recipe to processes."""
