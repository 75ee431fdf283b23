"""python -m emulator (with python/ and tests/ on PYTHONPATH) is python -m flash_attention emulate."""

from __future__ import annotations

import sys

from flash_attention.cli import main

if __name__ == "__main__":
    main(["emulate", *sys.argv[1:]])
