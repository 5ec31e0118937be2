"""Types as users' checkers see them: the stub says what the module has, and programs pass."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nixl._bindings as nb

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "nixl"

# What every class of the extension or every enumeration has, and what types say differently: a
# list is iterable because it can be indexed.
OF_ALL = {"__nb_enum__", "__weakref__", "__dict__", "__doc__", "__module__"}
ONLY_IN_TYPES = {"__iter__"}
ONLY_IN_MODULE = {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__"}


def described():
    """What the stub has: name -> set of members for classes, None for others."""
    names = {}
    for node in ast.parse((PACKAGE / "_bindings.pyi").read_text()).body:
        if isinstance(node, ast.ClassDef):
            members = set()
            for inner in node.body:
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    members.add(inner.name)
                elif isinstance(inner, ast.AnnAssign):
                    members.add(inner.target.id)
                elif isinstance(inner, ast.Assign):
                    members.update(target.id for target in inner.targets)
            names[node.name] = members
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = None
        elif isinstance(node, ast.AnnAssign):
            names[node.target.id] = None
    return names


def test_the_stub_has_the_names_of_the_module_and_no_others():
    names = set(described())
    assert names == set(vars(nb)) - ONLY_IN_MODULE


@pytest.mark.parametrize("name", [n for n, m in described().items() if m is not None])
def test_the_stub_has_the_members_of(name):
    thing, said = getattr(nb, name), described()[name]
    if inspect.ismodule(thing):
        assert {n for n in vars(thing) if not n.startswith("__")} == said
        return
    if issubclass(thing, Exception):
        assert said == {"code", "sentence"}
        return
    if hasattr(thing, "__members__"):
        assert set(thing.__members__) == said
        return
    ours = {n for n in vars(thing) if not n.startswith("__")}
    assert ours == {n for n in said if not n.startswith("__")}
    for special in (n for n in said - ONLY_IN_TYPES if n.startswith("__")):
        assert hasattr(thing, special), special


def mypy(*arguments):
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=str(HERE),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=170,
    )
    return done.returncode, done.stdout


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(PACKAGE.parent))


@pytest.mark.timeout(180)
def test_the_package_and_users_programs_pass_strictly(tmp_path):
    files = [str(PACKAGE), str(HERE / "typing_examples.py")]
    cache = ["--cache-dir", str(tmp_path)]
    status, output = mypy("mypy", "--strict", *cache, *files)
    assert status == 0, output
    # The check can fail: a program with mistakes does not pass.
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from nixl._api import nixl_agent\n"
        "agent = nixl_agent(5)\n"
        "agent.transfer('handle')\n"
        "text: str = agent.get_agent_metadata()\n"
        "async def f() -> None:\n"
        "    state: int = await agent.transfer_async(agent.no_such())\n"
    )
    status, output = mypy("mypy", "--strict", *cache, str(wrong))
    assert status == 1 and "Found 5 errors" in output, output


@pytest.mark.timeout(180)
def test_the_stub_fits_the_module():
    status, output = mypy("mypy.stubtest", "nixl._bindings", "--concise")
    internals = (
        "disjoint base",  # nanobind's classes may not be combined
        "metaclass differs",
        "is not a function",  # but nanobind's kind of one
        "stub does not have *args",  # which is all that it shows of its arguments
        "__nb_enum__ is not present in stub",
        "__iter__ is not present at runtime",
        "_memory is not a type",  # a module inside of a module
    )
    left = [line for line in output.splitlines() if not any(i in line for i in internals)]
    assert left == [], output
