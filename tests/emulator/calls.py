"""Calls of attention that mutations are tried with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from emulator.attention import Case, emulate
from emulator.machine import EmulatorError, Settings
from emulator.mutation import Change
from emulator.sweep import describe, settings_of


@dataclass(frozen=True)
class Call:
    """A call of attention, run with some seeds."""

    case: Case
    seeds: tuple[int, ...] = (0, 1)

    def emulate(self, settings: Settings, change: Change) -> dict[str, Tensor]:
        family = "hopper " if self.case.target.endswith("a") else ""
        family += "fp32 " if family and self.case.dtype == "fp32" else ""
        family += "one-product " if family and self.case.precision == "reduced" else ""
        is_wide = self.case.op == "backward" and max(self.case.head_dim, self.case.head_dim_v) > 128
        family += "wide " if family and is_wide else "two-pass " if family and self.case.deterministic else ""
        case = replace(self.case, settings=settings)
        return emulate(case, lambda op, source: change(family + op, source))

    def run(self, change: Change) -> None:
        for seed in self.seeds:
            self.emulate(settings_of(seed), change)

    def describe(self) -> str:
        return describe(replace(self.case, settings=Settings()))


@dataclass(frozen=True)
class Repeated(Call):
    """A call that must give the same bits with every seed."""

    def run(self, change: Change) -> None:
        runs = [self.emulate(replace(settings_of(seed), exp2_error=0), change) for seed in self.seeds]
        for name, tensor in runs[0].items():
            if any(not run[name].equal(tensor) for run in runs):
                raise EmulatorError(f"{name} has other bits with another seed")


def call(*arguments: Any, seeds: tuple[int, ...] = (0, 1), **options: Any) -> Call:
    """Call(Case(...))"""
    return Call(Case(*arguments, **options), seeds)
