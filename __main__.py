"""`python -m omni2vec` is the `omni2vec` command."""

from omni2vec.launch.cli import main

main()
