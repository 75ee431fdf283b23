"""What the functions with inline assembly must be: the emulator takes their place, and knows only these.

wrappers.txt has the text of each, on one line without comments and needless white space; the products of warpgroups,
which differ by their width, are derived here. After a change that is meant, and once native/instructions.h or
native/hopper_instructions.h do the same, renew it: docs/emulator.md, "Adding an instruction".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from flash_attention import _native

EXPECTED = Path(__file__).parent / "wrappers.txt"

# The name of a function at the start of a definition, its template line included.
_DEFINITION = re.compile(
    r"^(?:template\s*<[^<>]*>\s*)?(?:static\s+)?(?:inline\s+)?__device__[^;{}()]*?\b(\w+)\s*\(", re.MULTILINE
)
_STRING = r'"(?:[^"\\\n]|\\.)*"'
_BRACE = re.compile(rf"[{{}}]|{_STRING}|//[^\n]*|/\*.*?\*/", re.DOTALL)  # those of strings and comments do not count
_TOKEN = re.compile(
    rf"(?P<string>{_STRING})|(?P<space>(?:\s|//[^\n]*|/\*.*?\*/|^#line[^\n]*)+)|\w+|.", re.M | re.DOTALL
)
_SPELLINGS = {"__asm__": "asm", "__asm": "asm", "__volatile__": "volatile", "__volatile": "volatile"}
_PRODUCT = re.compile(r"wgmma_m64n(\d+)k(16|64)")


def _end_of_body(text: str, start: int) -> int:
    """Behind the brace that closes the first one at or behind `start`."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if match[0] == "}" and depth == 0:
            return match.end()
    raise ValueError("a function of the kernel does not end")


def definitions(source: str) -> Iterator[tuple[str, int, int]]:
    """The name of each function of the device, where its definition begins and where it ends."""
    position = 0
    for match in _DEFINITION.finditer(source):
        if match.start() >= position:
            position = _end_of_body(source, match.end())
            yield match.group(1), match.start(), position


def normalised(text: str) -> str:
    """Without comments; white space only between words; strings that follow each other are one."""
    result, word, string = "", False, False
    for token in _TOKEN.finditer(text):
        if token["space"]:
            continue
        piece = _SPELLINGS.get(token[0], token[0])
        if token["string"] and string:
            result, piece = result[:-1], piece[1:]
        is_word = bool(re.match(r"\w", piece)) and not token["string"]
        result += (" " if word and is_word else "") + piece
        word, string = is_word, bool(token["string"])
    return result


def _product(n: int, k: int, dtype: str, from_registers: bool) -> str:
    """wgmma.h for n columns, over k (16 or 64), normalised."""
    c, kind, steps = n // 2, {"fp16": "f16", "bf16": "bf16"}[dtype], k // 16
    operands: list[str] = []
    lefts, rights = [], []
    for step in range(steps):
        along = [f"along_k<TRANS_{x}>({x.lower()},{16 * step})" if step else x.lower() for x in "AB"]
        left = [f'"r"(a[{4 * step + i}])' for i in range(4)] if from_registers else [f'"l"({along[0]})']
        numbers = [f"%{c + len(operands) + i}" for i in range(len(left) + 1)]
        lefts.append(f"{{{', '.join(numbers[:-1])}}}" if from_registers else numbers[0])
        rights.append(numbers[-1])
        operands += [*left, f'"l"({along[1]})']
    accumulate = f"%{c + len(operands)}"
    transposed = [f"%{c + len(operands) + 1 + i}" for i in range(1 if from_registers else 2)]
    operands += ['"r"(accumulate)', *([] if from_registers else ['"n"(TRANS_A)']), '"n"(TRANS_B)']
    sums = ", ".join(f"%{i}" for i in range(c))
    assembly = rf"{{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, {accumulate}, 0;\n"
    for step in range(steps):
        assembly += r"setp.ne.b32 accumulate, 1, 0;\n" if step == 1 else ""
        assembly += f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {{{sums}}}, "
        assembly += rf"{lefts[step]}, {rights[step]}, accumulate, 1, 1, {', '.join(transposed)};\n"
    parameters = f"const u32(&a)[{4 * steps}]" if from_registers else "u64 a"
    outputs = ",".join(f'"+f"(c[{i}])' for i in range(c))
    return (
        f"template<{'' if from_registers else 'int TRANS_A,'}int TRANS_B>static __device__ __forceinline__ void "
        f"wgmma_m64n{n}k{k}(float(&c)[{c}],{parameters},u64 b,int accumulate)"
        f'{{asm volatile("{assembly}}}":{outputs}:{",".join(operands)});}}'
    )


@cache
def _expected() -> dict[str, dict[str, str]]:
    """For each function the texts that it may have, with the type that each is for ("fp16", "bf16"; "": both)."""
    result: dict[str, dict[str, str]] = {}
    for line in EXPECTED.read_text().splitlines():
        name, dtype, text = line.split("\t")
        result.setdefault(name, {})[text] = dtype
    return result


def _texts(name: str) -> dict[str, str]:
    product = _PRODUCT.fullmatch(name)
    if product and int(product[1]) in range(8, 257, 8):
        n, k = int(product[1]), int(product[2])
        return {_product(n, k, t, r): t for t in ("fp16", "bf16") for r in (False, True)}
    return _expected().get(name, {})


def _same(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def check(name: str, text: str) -> str:
    """Is this function what the emulator takes it for? The type that it says the kernel's elements have, or ""."""
    texts = _texts(name)
    if not texts:
        raise NotImplementedError(
            f"the emulator has no model of {name}: give it one in native/instructions.h or "
            "native/hopper_instructions.h, and its text in wrappers.txt (wrappers.py)"
        )
    if (found := normalised(text)) not in texts:
        same, nearest = max((_same(found, t), t) for t in texts)
        shown = slice(max(same - 40, 0), same + 40)
        raise NotImplementedError(
            f"{name} is not what the emulator has a model of: see whether native/instructions.h or "
            "native/hopper_instructions.h still does the same, then renew wrappers.txt (wrappers.py)\n"
            f"    it was ...{nearest[shown]}...\n    and is ...{found[shown]}..."
        )
    return texts[found]


def is_known(name: str) -> bool:
    return bool(_texts(name))


def templates() -> str:
    """wrappers.txt as the templates are now."""
    found: dict[tuple[str, str], set[str]] = {}
    for dtype in ("fp16", "bf16"):
        text = _native.expand("cuda/ptx.h", {"dtype_16": dtype, "op": "backward", "vector_reduce": 1})
        text += _native.expand("cuda/hopper.h", {})
        for name, start, end in definitions(text):
            found.setdefault((name, normalised(text[start:end])), set()).add(dtype)
    with_assembly = {name for name, text in found if re.search(r"\basm\b", text)}
    lines = [
        f"{name}\t{next(iter(dtypes)) if len(dtypes) == 1 else ''}\t{text}\n"
        for (name, text), dtypes in sorted(found.items())
        if name in with_assembly
    ]
    return "".join(lines)


if __name__ == "__main__":
    print(templates(), end="")
