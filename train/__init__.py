"""Everything that makes gradients."""
