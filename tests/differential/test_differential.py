"""The same programs in upstream's implementation and in ours give the same, or what the table of
differences says."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import differences
from conftest import PROGRAMS
from programs import ALL
from sides import Died

PAGE = Path(__file__).resolve().parents[2] / "docs" / "differences.md"


def shown(lines, i=None):
    """A program as text, with an arrow before line `i`."""
    marks = ["->" if n == i else "  " for n in range(len(lines))]
    return "\n".join(f"{mark} {name} = {text}" for mark, (name, text) in zip(marks, lines))


def compare(lines, theirs, ours, counts):
    """Runs a program in both; returns what is to be complained about, or None."""
    counts["programs"] += 1
    counts["calls"] += len(lines)
    try:
        there = theirs.run(lines)
    except Died:
        counts["programs in which upstream died"] += 1
        return None
    try:
        here = ours.run(lines)
    except Died as death:
        return f"{death}\n{shown(lines)}"
    found = differences.first_difference(lines, there, here)
    if found is None:
        counts["programs that gave the same"] += 1
        return None
    i, row = found
    if row is not None:
        counts[f"programs that showed '{row.name}'"] += 1
        return None
    if i == len(lines):
        return f"memories or messages differ at the end of\n{shown(lines)}\n{there[i]}\n{here[i]}"
    return f"{shown(lines, i)}\nupstream: {there[i]}\nours:     {here[i]}"


@pytest.mark.parametrize("kind", sorted(ALL))
def test_programs_do_the_same(kind, sides, counts):
    theirs, ours = sides

    @settings(
        max_examples=PROGRAMS,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a difference takes processes to confirm: too slow to shrink
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(ALL[kind])
    def run(lines):
        complaint = compare(lines, theirs, ours, counts)
        if complaint:
            # Once more in fresh processes: a crash that upstream survived may show up later.
            theirs.stop()
            ours.stop()
            complaint = compare(lines, theirs, ours, counts)
            if not complaint:
                counts["differences that fresh processes did not show"] += 1
        assert not complaint, complaint

    run()


EXAMPLES = [row for row in differences.DIFFERENCES if row.example]


@pytest.mark.parametrize("row", EXAMPLES, ids=lambda row: row.name)
def test_the_examples_of_the_table_differ(row, sides):
    theirs, ours = sides
    here = ours.run(row.example)
    last = len(row.example) - 1
    if row.dies:
        with pytest.raises(Died):
            theirs.run(row.example)
        return
    there = theirs.run(row.example)
    assert there[:last] == here[:last]
    assert there[last] != here[last]
    step = differences.Step(row.example[last][1], there[last], here[last], row.example[:last])
    assert row.matches(step), step


def test_the_page_about_differences_is_that_of_the_table():
    assert PAGE.read_text() == differences.page(), (
        "docs/differences.md is not what the table says; "
        "'python tests/differential/differences.py > docs/differences.md' writes it"
    )


def test_rows_have_names_of_their_own():
    names = [row.name for row in differences.DIFFERENCES]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[^|\n]+", name) for name in names)
