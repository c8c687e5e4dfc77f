"""One benchmark a file: each gives Tasks. `shards` gives them from any rows that declare their kind."""
