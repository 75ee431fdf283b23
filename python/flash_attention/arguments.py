"""What the arguments of the command line may be: types for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def several(*allowed: str) -> Callable[[str], list[str]]:
    """A comma-separated list of some of `allowed`."""

    def parse(text: str) -> list[str]:
        items = [item.strip() for item in text.split(",")]
        for item in items:
            if item not in allowed:
                raise argparse.ArgumentTypeError(f"{item!r} is none of {', '.join(allowed)}")
        return items

    return parse


def numbers(text: str) -> list[int]:
    """A comma-separated list of positive numbers."""
    try:
        return [positive(item) for item in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 512,2048") from None
