"""A complete training run with FlashAttention: a small character-level transformer.

    python examples/example_training.py
    python examples/example_training.py --text book.txt --steps 2000
    python examples/example_training.py --dtype bf16

It learns the source text of Python's standard library, or any text file, and ends with a sample of what it
learned. A GPU is used where flash_attention supports it, for a larger model, else the CPU. examples/demo.py trains
the same model a second time with PyTorch's own attention and compares the two.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flash_attention import FlashAttention, flash_attention


@dataclass(frozen=True)
class Size:
    """Of a model and of its training."""

    d_model: int
    num_heads: int
    num_layers: int
    context: int  # characters that a position can look back on
    batch: int
    steps: int
    learning_rate: float


SIZES = {
    "cpu": Size(d_model=128, num_heads=2, num_layers=4, context=1024, batch=2, steps=600, learning_rate=3e-3),
    "cuda": Size(d_model=384, num_heads=6, num_layers=6, context=4096, batch=4, steps=500, learning_rate=1e-3),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def causal_flash_attention(head_dim: int) -> nn.Module:
    """The attention of one layer: query i sees keys 0 to i."""
    return FlashAttention(head_dim, is_causal=True)


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv:2104.09864): scores depend on how far apart two characters are."""
    half = x.shape[-1] // 2
    speed = 1e4 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * speed
    cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


class Block(nn.Module):
    """One transformer layer: causal self-attention, then a feed-forward network, each on a normalised residual."""

    def __init__(self, d_model: int, num_heads: int, attention: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(d_model)
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attention = attention(d_model // num_heads)
        self.projection = nn.Linear(d_model, d_model, bias=False)
        self.norm_feed_forward = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        batch, seqlen, d_model = x.shape
        heads = self.query_key_value(self.norm_attention(x)).view(batch, seqlen, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (batch, heads, seqlen, head_dim) each: views, no copies
        query, key = rotate(query), rotate(key)
        attended = self.attention(query, key, value)
        x = x + self.projection(attended.transpose(1, 2).reshape(batch, seqlen, d_model))
        return x + self.feed_forward(self.norm_feed_forward(x))


class CharTransformer(nn.Module):
    """Predicts each next character; `attention` makes a layer's attention module from its head dim."""

    def __init__(
        self, vocabulary: int, size: Size, attention: Callable[[int], nn.Module] = causal_flash_attention
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, size.d_model)
        self.blocks = nn.Sequential(*(Block(size.d_model, size.num_heads, attention) for _ in range(size.num_layers)))
        self.norm = nn.LayerNorm(size.d_model)
        self.logits = nn.Linear(size.d_model, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """(batch, seqlen) character numbers -> (batch, seqlen, vocabulary) logits of the characters that follow."""
        return self.logits(self.norm(self.blocks(self.characters(characters))))


class Text:
    """A text as numbers: its alphabet, a part to train on and the last tenth to validate with."""

    def __init__(self, text: str, size: Size) -> None:
        self.size = size
        self.alphabet = sorted(set(text))
        number = {character: i for i, character in enumerate(self.alphabet)}
        data = torch.tensor([number[character] for character in text])
        if len(data) < 20 * size.context:
            raise SystemExit(f"the text has {len(data)} characters; it needs at least {20 * size.context}")
        split = len(data) * 9 // 10
        self.training, self.validation = data[:split], data[split:]

    def batches(self, data: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless random (input, target) pairs of shape (batch, context); the same seed gives the same ones."""
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.arange(self.size.context)
        while True:
            start = torch.randint(len(data) - self.size.context, (self.size.batch, 1), generator=generator)
            yield data[start + offsets], data[start + offsets + 1]

    def decode(self, numbers: Tensor) -> str:
        return "".join(self.alphabet[i] for i in numbers.tolist())


def load_text(path: str | None, size: Size, characters: int = 4_000_000) -> Text:
    """The file's text, else the source of Python's standard library, ASCII only."""
    if path:
        return Text(Path(path).read_text(encoding="utf-8", errors="replace")[:characters], size)
    parts, length = [], 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = file.read_text(encoding="utf-8", errors="replace")
        if source.isascii() and length < characters:
            parts.append(source)
            length += len(source)
    return Text("".join(parts)[:characters], size)


def pick_device() -> torch.device:
    """A GPU where flash_attention supports it, else the CPU."""
    if torch.cuda.is_available():
        probe = torch.zeros(1, 1, 1, 64, device="cuda")
        try:
            flash_attention(probe, probe, probe)
        except NotImplementedError:
            return torch.device("cpu")
        return torch.device("cuda")
    return torch.device("cpu")


class Trainer:
    """A model and its optimizer: warm-up, then a cosine down to a tenth of the learning rate.

    With `dtype` bf16, parameters stay fp32 and autocast chooses what is computed in bf16: matrix products, attention.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, steps: int, learning_rate: float, dtype: torch.dtype
    ) -> None:
        self.model, self.device = model.to(device), device
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        warm_up = max(1, steps // 10)

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross entropy of the next character, in nats."""
        characters, targets = (part.to(self.device) for part in batch)
        with self.autocast:
            logits = self.model(characters)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def step(self, batch: tuple[Tensor, Tensor]) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1.0)
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    @torch.no_grad()
    def validate(self, text: Text, batches: int = 8) -> float:
        stream = text.batches(text.validation, seed=1)
        return sum(self.loss(next(stream)).item() for _ in range(batches)) / batches


@torch.no_grad()
def sample(model: nn.Module, text: Text, device: torch.device, length: int = 400, temperature: float = 0.7) -> str:
    """Let the model write on from a line of its own text.

    The window always has the same number of characters, filled up at its end: what comes later is not seen (causal),
    and one shape serves every step.
    """
    window_size = text.size.context // 4
    generator = torch.Generator().manual_seed(0)
    start = len(text.decode(text.validation[:2000]).rpartition("\n")[0]) + 1
    written = text.validation[max(0, start - window_size // 2) : start].tolist()
    prompt = len(written)
    for _ in range(length):
        seen = written[-window_size:]
        window = torch.tensor([seen + [0] * (window_size - len(seen))], device=device)
        logits = model(window)[0, len(seen) - 1].float().cpu()
        written.append(int(torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator)))
    return text.decode(torch.tensor(written[prompt:]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", help="text file to learn (default: the source of Python's standard library)")
    parser.add_argument("--steps", type=int, help="training steps (default: 600; on a GPU 500)")
    parser.add_argument("--device", type=torch.device, help="default: cuda where it is supported, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16: through autocast (default: %(default)s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device = arguments.device or pick_device()
    size, dtype = SIZES[device.type], DTYPES[arguments.dtype]
    steps = arguments.steps or size.steps
    text = load_text(arguments.text, size)
    trainer = Trainer(CharTransformer(len(text.alphabet), size), device, steps, size.learning_rate, dtype)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"{len(text.training):,} characters, {parameters:,} parameters, {device.type}, {arguments.dtype}")

    stream = text.batches(text.training, seed=0)
    started = time.perf_counter()
    for step in range(1, steps + 1):
        loss = trainer.step(next(stream))
        if step % 20 == 0 or step == 1:
            speed = step * size.batch * size.context / (time.perf_counter() - started)
            print(f"step {step:5d}  loss {loss:.4f}  {speed:8,.0f} tokens/s", flush=True)
    print(f"validation loss {trainer.validate(text):.4f}\n\n{sample(trainer.model, text, device)}")


if __name__ == "__main__":
    main()
