"""The commands of an installed wheel: nixl-info, nixlbench and nixl-config."""

import argparse
import os
import sys
from typing import List

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def _become(name: str, arguments: List[str]) -> None:
    """Goes on as the program `name`, which lies in this package, in the same process."""
    program = os.path.join(_PACKAGE, "bin", name)
    try:
        os.execv(program, [name] + arguments)
    except OSError as error:
        sys.exit(
            f"{name}: cannot run {program}: {error.strerror}. This copy of nixl was built without "
            "the command line tools; a wheel from PyPI has them, and so has a build on a machine "
            "with CLI11 and nlohmann-json"
        )


def nixl_info() -> None:
    """The command nixl-info; where it tells of Python, of the one that has this package."""
    arguments = sys.argv[1:]
    tells = {"system", "--system", "check", "--check"}
    if not arguments:
        arguments = ["check"]
    if tells & set(arguments) and not any(word.startswith("--python") for word in arguments):
        arguments = arguments + ["--python", sys.executable]
    _become("nixl-info", arguments)


def nixlbench() -> None:
    """The command nixlbench."""
    _become("nixlbench", sys.argv[1:])


def nixl_config() -> None:
    """The command nixl-config: what a C++ compiler has to be told to use this copy of nixl."""
    parser = argparse.ArgumentParser(
        prog="nixl-config",
        description="Prints what a C++ compiler has to be told to use this copy of nixl: "
        "g++ -std=c++17 program.cc $(nixl-config --cflags --libs)",
    )
    parser.add_argument("--cflags", action="store_true", help="where the headers are")
    parser.add_argument("--libs", action="store_true", help="the library, and where it is")
    parser.add_argument("--libdir", action="store_true", help="the folder of the library alone")
    args = parser.parse_args()
    library = os.path.join(os.path.dirname(_PACKAGE), ".nixl.mesonpy.libs")
    headers = os.path.join(_PACKAGE, "include")
    for folder in (library, headers):
        if not os.path.isdir(folder):
            sys.exit(
                f"nixl-config: there is no {folder}. Only an installed wheel has one; for a copy "
                "that Meson installed, ask pkg-config for nixl"
            )
    words = []
    if args.cflags:
        words.append(f"-I{headers}")
    if args.libs:
        words += [f"-L{library}", "-l:libnixl.so.2", f"-Wl,-rpath,{library}"]
    if args.libdir:
        words.append(library)
    if not words:
        parser.error("say what to print: --cflags, --libs or --libdir")
    print(" ".join(words))
