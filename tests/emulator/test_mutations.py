"""Kernels that are wrong on purpose are found: mutations.py prints the table, mutations_*.py have the list."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from emulator import mutations, pool
from emulator.calls import call
from emulator.machine import EmulatorError
from emulator.mutation import Change, Mutation

ALL = mutations.all_mutations()
KERNELS = sorted({mutation.kernel for mutation in ALL})


@pytest.mark.parametrize("kernel", KERNELS)
def test_mutations_are_caught(kernel: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever drops a wait, moves a mask or forgets a scale is told so. Without a mutation the same calls are right.

    One in sixteen: `python -m flash_attention emulate --mutations` runs all.
    """
    some = [mutation for mutation in ALL if mutation.kernel == kernel][::16]
    assert mutations.print_table(some), capsys.readouterr().out


def test_every_mutation_is_up_to_date() -> None:
    """Its text is in the kernel that its call runs."""
    groups = mutations.by_kernel_and_trial(ALL)
    assert not [text for _, texts in pool.run(mutations.out_of_date, groups) for text in texts]


def test_names_are_told_apart() -> None:
    names = [(mutation.kernel, mutation.name) for mutation in ALL]
    assert len(set(names)) == len(names)


ROWS = Mutation("forward", "a row", call(head_dim=16, seqlen_q=20), "first + row < rows)", "first + row <= rows)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": "no such text"}, "stands 0 times, not 1"),
        ({"times": 2}, "stands 1 times, not 2"),
        ({"within": "multiply_keys"}, "stands 0 times in multiply_keys, not 1"),
        ({"within": "nothing"}, "0 functions nothing"),
    ],
)
def test_a_mutation_out_of_date_is_an_error(change: dict, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A template that has moved on does not silently lose its mutation."""
    assert not mutations.print_table([replace(ROWS, **change)])
    table = capsys.readouterr().out
    assert "OUT OF DATE" in table
    assert message in table


def test_only_one_of_several_places_is_changed() -> None:
    source = "int f(int x)\n{\n  a;\n  b;\n  a;\n}\nint g(int a)\n{\n  a;\n}\n"
    mutation = Mutation("", "", ROWS.trial, "a;", "c;", within="f", times=2, only=2)
    assert mutation.apply(source) == source.replace("b;\n  a;", "b;\n  c;")


def test_a_survivor_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A change that changes nothing is caught by nothing: the table says so and the command fails."""
    harmless = replace(ROWS, new="first + row < (rows))")
    assert not mutations.print_table([ROWS, harmless])
    table = capsys.readouterr().out
    assert "NOTHING" in table
    assert "1 of 2 mutations are caught" in table
    assert "out of bounds" in table


@dataclass(frozen=True)
class Wrong:
    def run(self, change: Change) -> None:
        raise EmulatorError("race: wrong from the start")

    def describe(self) -> str:
        return "a wrong kernel"


def test_a_kernel_that_is_wrong_by_itself_proves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert not mutations.print_table([replace(ROWS, trial=Wrong())])
    assert "WRONG without any mutation: a wrong kernel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "check"),
    [
        ("forward (seed 0):\nx.h:1 (f): race: writes shared memory", "race"),
        ("deadlock: threads spin", "deadlock"),
        ("grad_query: 4 of 8 elements are wrong", "wrong result"),
        ("output: 16 bytes are not written", "hole in a result"),
        ("something new", "other finding"),
    ],
)
def test_checks_are_named(error: str, check: str) -> None:
    assert mutations.check_of(error) == check
