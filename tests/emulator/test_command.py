"""What the options of `python -m flash_attention emulate` may be is said before anything runs."""

from __future__ import annotations

import pytest

from flash_attention import cli


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--exp2-error -1", "exp2_error is -1; it must be 0 to"),
        ("--exp2-error 3000000000", "exp2_error is 3000000000; it must be 0 to"),
        ("--without grad_key", "without is grad_key; only backward"),
        ("--scale nan", "scale is nan; it must be a number, or be left out for 1 / sqrt(head dim)"),
        ("--resident 0", "resident is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be(options: str, reason: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(("emulate", *options.split()))
    assert reason in str(caught.value.code)


def test_a_scale_that_no_call_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(("emulate", "--head-dim", "16", "--seqlen-q", "5", "--scale", "inf"))
    assert "a scale of inf is none that a call can have" in capsys.readouterr().out


def test_more_blocks_at_once_than_there_are() -> None:
    cli.main(("emulate", "--head-dim", "16", "--seqlen-q", "5", "--resident", "1000000000", "--seeds", "1"))
