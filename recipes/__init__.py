"""Complete runs that users copy; nothing imports them."""
