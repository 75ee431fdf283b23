"""What is done with a report of compute-sanitizer's racecheck: only one kind of it is no race."""

from __future__ import annotations

import pytest

from gpu.racecheck import disassembled, races

MODULE = """
\t.section\t.text.backward,"ax",@progbits
.L_x_1:
        /*9950*/              @!P1 LDS.128 R4, [R7+0x34000] ;   /* 0x000 */
                                                                 /* 0x00000000c */
        /*9990*/                   LDS.128 R8, [R7+0x34080] ;
        /*99a0*/                   STS [R7], R8 ;
        /*c520*/                   UBLKCP.S.G [UR14], [UR10], UR8 ;
\t.section\t.text.end_queries,"ax",@progbits
        /*9990*/                   EXIT ;
"""
REPORT = """========= COMPUTE-SANITIZER
========= Error: Race reported between {first} access at backward+0x{at:x}
=========     and Read access at backward+0x9950 [15360 hazards]
=========     and {kind} access at {other} [15360 hazards]
=========
"""


@pytest.mark.parametrize(
    ("first", "at", "kind", "other", "known"),
    [
        ("Write", 0xC520, "Read", "backward+0x9990", True),
        ("Write", 0xC520, "Write", "backward+0x99a0", False),
        ("Write", 0x99A0, "Read", "backward+0x9990", False),
        ("Read", 0xC520, "Read", "backward+0x9990", False),
        ("Write", 0xC520, "Read", "end_queries+0x9990", False),
        ("Write", 0xC520, "Read", "backward+0x9980", False),
    ],
)
def test_only_statistics_given_back_are_no_race(first: str, at: int, kind: str, other: str, known: bool) -> None:
    """A store, another kernel's load, or an unknown instruction among the accesses is a race like any other."""
    (race,) = races(REPORT.format(first=first, at=at, kind=kind, other=other))
    assert len(race.others) == 2
    assert race.is_of_statistics([{}, disassembled(MODULE)]) is known


def test_each_report_is_read() -> None:
    text = REPORT.format(first="Write", at=0xC520, kind="Read", other="backward+0x9990")
    assert [race.first.address for race in races(text + text.replace("c520", "99a0"))] == [0xC520, 0x99A0]
    assert not list(races("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"))
