"""The usage guide's Python blocks run, in order and in one namespace: as they are on a GPU, and on a CPU too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "usage_guide.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# One block is a fragment that speaks of the reader's own Q and loss; the guide has none at hand there that was not
# already used up by a backward pass.
FRAGMENT = "# Check gradients after backward\nloss.backward()"
OWN_LOSS = "loss = FlashAttention(head_dim=64)(Q, Q.detach(), Q.detach()).sum()"


def blocks() -> list[tuple[int, str]]:
    """Line and text of every Python block."""
    text = GUIDE.read_text()
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.oldest
def test_usage_guide(device, capsys):
    """What users copy first. On a CPU only the device is changed: device='cpu' and no .cuda()."""
    torch.manual_seed(0)
    names: dict = {"__name__": "usage_guide"}
    found = blocks()
    assert len(found) == 14
    for line, block in found:
        if device.type == "cpu":
            block = (
                block.replace("device='cuda'", "device='cpu'").replace(".cuda()", "").replace("== 'cuda'", "== 'cpu'")
            )
        if FRAGMENT in block:
            exec(OWN_LOSS, names)
        padded = "\n" * (line - 1) + block  # so that a traceback names the guide's line
        exec(compile(padded, str(GUIDE), "exec"), names)
    for name in ("Q", "flash_out", "output"):
        assert names[name].device.type == device.type, name
    assert names["Q"].grad.isfinite().all()
    printed = capsys.readouterr().out
    assert "Output shape: torch.Size([2, 4, 128, 64])" in printed
    assert "Backward pass validation successful" in printed
