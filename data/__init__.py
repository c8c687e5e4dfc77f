"""Bytes to Examples. Knows no model and no process group."""
