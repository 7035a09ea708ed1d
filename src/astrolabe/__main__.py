"""``python -m astrolabe``."""

from astrolabe.cli import main

main()
