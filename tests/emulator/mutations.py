"""The table of mutations: which check catches which. python -m flash_attention emulate --mutations"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emulator import (
    mutations_backward,
    mutations_forward,
    mutations_hopper,
    mutations_hopper_backward,
    mutations_hopper_fp32,
    mutations_hopper_keys,
    mutations_hopper_one,
    mutations_hopper_two_pass,
    mutations_hopper_wide,
    mutations_matmul,
    pool,
)
from emulator.machine import EmulatorError
from emulator.mutation import Mutation, OutOfDateError, Trial

# What a finding says -> what the table calls it. The first that fits.
CHECKS = (
    ("deadlock", "deadlock"),
    ("copy is under way", "copy not waited for"),
    ("which a bulk copy writes", "copy not waited for"),
    ("of a wgmma under way", "wgmma not waited for"),
    ("under way when", "still under way"),
    ("asynchronous operation of", "still under way"),
    ("when its thread ends", "still under way"),
    ("when its block ends", "still under way"),
    ("no fence_async_shared", "proxy fence"),
    ("wgmma_fence", "wgmma fence"),
    ("arrivals in phase", "mbarrier"),
    ("race: ", "race"),
    ("out of bounds", "out of bounds"),
    ("between the elements of", "out of bounds"),
    ("no memory of this kernel", "out of bounds"),
    ("nobody has written", "not written"),
    ("used before it is set", "not written"),
    ("not aligned", "misaligned"),
    ("off a multiple of", "misaligned"),
    ("mbarrier", "mbarrier"),
    ("barrier ", "named barrier"),
    ("registers_", "setmaxnreg"),
    ("setmaxnreg", "setmaxnreg"),
    ("null pointer", "null pointer"),
    ("crashes at", "crash"),
    ("endless loop", "endless loop"),
    ("bytes are not written", "hole in a result"),
    ("elements are wrong", "wrong result"),
    ("rows are wrong", "wrong result"),
    ("what lies between", "wrong result"),
    ("other bits with another seed", "not repeatable"),
)


def check_of(error: str) -> str:
    """Which check found it: that of the first finding of the text."""
    for line in error.splitlines():
        for text, check in CHECKS:
            if text in line:
                return check
    return "other finding"


@dataclass(frozen=True)
class Verdict:
    """What came of a mutation."""

    check: str  # "": it survived, or is out of date
    finding: str  # the whole text; of one that is out of date, what is not there
    seconds: float

    @property
    def place(self) -> str:
        """The line of the template at which it showed."""
        found = re.search(r"^([\w.]+:\d+) \(", self.finding, re.MULTILINE)
        return found[1] if found else ""


def try_mutation(mutation: Mutation) -> Verdict:
    """Run its call."""

    def change(kernel: str, source: str) -> str:
        return mutation.apply(source) if kernel == mutation.kernel else source

    start = time.perf_counter()
    try:
        mutation.trial.run(change)
    except EmulatorError as error:
        text = str(error)
        return Verdict(check_of(text), text, time.perf_counter() - start)
    except OutOfDateError as error:
        return Verdict("", str(error), time.perf_counter() - start)
    return Verdict("", "", time.perf_counter() - start)


class _RenderedError(Exception):
    """Raised where a kernel would be compiled."""


def out_of_date(mutations: Sequence[Mutation]) -> list[str]:
    """What mutations of one kernel and one trial do not find in it; the kernel is rendered once and not run."""
    kernel, texts = mutations[0].kernel, []

    def change(name: str, source: str) -> str:
        if name != kernel:
            return source
        for mutation in mutations:
            try:
                mutation.apply(source)
            except OutOfDateError as error:
                texts.append(str(error))
        raise _RenderedError

    try:
        mutations[0].trial.run(change)
    except _RenderedError:
        return texts
    return [f"mutation {mutation.name!r}: its call runs no kernel {kernel}" for mutation in mutations]


def by_kernel_and_trial(mutations: Sequence[Mutation]) -> list[list[Mutation]]:
    groups: dict[tuple[str, Trial], list[Mutation]] = {}
    for mutation in mutations:
        groups.setdefault((mutation.kernel, mutation.trial), []).append(mutation)
    return list(groups.values())


def try_unchanged(trial: Trial) -> str:
    """What is wrong with the kernel as it is: then a mutation that is found proves nothing."""
    try:
        trial.run(lambda kernel, source: source)
    except EmulatorError as error:
        return f"{trial.describe()}: {error}"
    return ""


def wrong_without_mutation(mutations: Sequence[Mutation]) -> list[str]:
    trials = list(dict.fromkeys(mutation.trial for mutation in mutations))
    return [error for _, error in pool.run(try_unchanged, trials) if error]


def verdicts(mutations: Sequence[Mutation]) -> Iterator[tuple[Mutation, Verdict]]:
    """Each with what came of it, in the order of the list, as soon as it is known."""
    ready: dict[Mutation, Verdict] = {}
    waiting = list(mutations)
    for mutation, verdict in pool.run(try_mutation, mutations):
        ready[mutation] = verdict
        while waiting and waiting[0] in ready:
            yield waiting[0], ready[waiting[0]]
            waiting.pop(0)


def all_mutations() -> list[Mutation]:
    lists = (
        *(mutations_forward, mutations_backward),
        *(mutations_hopper, mutations_hopper_fp32, mutations_hopper_one, mutations_hopper_backward),
        *(mutations_hopper_keys, mutations_hopper_two_pass, mutations_hopper_wide, mutations_matmul),
    )
    return [mutation for module in lists for mutation in module.MUTATIONS]


def print_table(mutations: Sequence[Mutation]) -> bool:
    """Try them and say what caught each. True if none survived, and all kernels are right without them."""
    start = time.perf_counter()
    trials = {mutation.trial for mutation in mutations}
    print(f"{len(trials)} calls with the kernels as they are ...", flush=True)
    wrong = wrong_without_mutation(mutations)
    for text in wrong:
        print(f"WRONG without any mutation: {text}")
    width, kernels = (max(len(getattr(m, name)) for m in mutations) for name in ("name", "kernel"))
    print(f"{'':9}{'mutation':{width}}  {'kernel':{kernels}}  {'caught by':20}  {'s':>5}  {'at':22}  call")
    survived = 0
    for number, (mutation, verdict) in enumerate(verdicts(mutations), 1):
        survived += not verdict.check
        by = verdict.check or ("OUT OF DATE" if verdict.finding else "NOTHING")
        print(
            f"{f'{number}/{len(mutations)}':9}{mutation.name:{width}}  {mutation.kernel:{kernels}}  {by:20}  "
            f"{verdict.seconds:5.1f}  {verdict.place:22}  {mutation.trial.describe()}",
            flush=True,
        )
        if not verdict.check and verdict.finding:
            print(f"{'':9}{verdict.finding}")
    caught = len(mutations) - survived
    print(f"{caught} of {len(mutations)} mutations are caught; {time.perf_counter() - start:.0f} s")
    return not survived and not wrong
