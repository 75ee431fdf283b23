"""`python -m flash_attention`: see cli.py."""

from flash_attention.cli import main

main()
