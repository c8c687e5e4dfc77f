"""One objective a file; the protocols live in types.py beside them."""
