"""What an ELF file needs of others and gives to them, as readelf (binutils) tells."""

import os
import re
import subprocess


def is_elf(path):
    with open(str(path), "rb") as file:
        return file.read(4) == b"\x7fELF"


def _readelf(*args):
    return subprocess.run(["readelf", "--wide", *map(str, args)], check=True, timeout=60,
                          stdout=subprocess.PIPE, universal_newlines=True,
                          env=dict(os.environ, LC_ALL="C")).stdout


def dynamic(path):
    """The entries of the dynamic section that name something: {"NEEDED": [...], "RUNPATH": ...}."""
    found = {}
    entry = re.compile(r"\((NEEDED|SONAME|RPATH|RUNPATH)\).*\[(.*)\]")
    for kind, value in entry.findall(_readelf("-d", path)):
        found.setdefault(kind, []).append(value)
    return found


def symbols(path):
    """(wanted, given): names with versions that others have to give, such as
    ("memcpy", "GLIBC_2.14"), and names that the file gives to others."""
    wanted, given = set(), set()
    for line in _readelf("--dyn-syms", path).splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        name, _, version = fields[7].replace("@@", "@").partition("@")
        if fields[6] == "UND":
            wanted.add((name, version))
        elif fields[4] != "LOCAL" and fields[6] != "ABS":  # ABS: names of versions
            given.add(name)
    return wanted, given


def number(version):
    """(2, 34) of "GLIBC_2.34"; nothing of a word such as GLIBC_PRIVATE."""
    digits = version.partition("_")[2]
    return tuple(map(int, digits.split("."))) if re.fullmatch(r"[0-9.]+", digits) else ()


# The first release of glibc with whose distributions such a libstdc++ (or libgcc_s) comes:
# Enterprise Linux 8 has 2.28, Debian 11 has 2.31, Enterprise Linux 9 has 2.34, Ubuntu 22.04 has
# 2.35, and 24.04 has 2.39. Prefix, newest version that they have, their glibc.
RUNTIMES = (
    ("GLIBCXX", (3, 4, 25), (2, 28)), ("CXXABI", (1, 3, 11), (2, 28)), ("GCC", (7, 0, 0), (2, 28)),
    ("GLIBCXX", (3, 4, 28), (2, 31)), ("CXXABI", (1, 3, 12), (2, 31)),
    ("GLIBCXX", (3, 4, 29), (2, 34)), ("CXXABI", (1, 3, 13), (2, 34)),
    ("GLIBCXX", (3, 4, 30), (2, 35)), ("GCC", (12, 0, 0), (2, 35)),
    ("GLIBCXX", (3, 4, 33), (2, 39)), ("CXXABI", (1, 3, 15), (2, 39)), ("GCC", (14, 0, 0), (2, 39)),
)


def floor(path):
    """(glibc, why): the oldest glibc, such as (2, 34), whose systems can load the file, and the
    symbols that exclude older ones."""
    lowest, why = (2, 17), []
    for name, version in sorted(symbols(path)[0]):
        prefix, wanted = version.partition("_")[0], number(version)
        if prefix == "GLIBC" and wanted:
            needs = wanted
        elif prefix in ("GLIBCXX", "CXXABI", "GCC") and wanted:
            systems = [glibc for kind, newest, glibc in RUNTIMES
                       if kind == prefix and wanted <= newest]
            if not systems:
                raise ValueError(f"{path} needs {name} of {version}, which no known system has")
            needs = min(systems)
        elif version:
            raise ValueError(f"{path} needs {name} of {version}, which is no public version")
        else:
            continue
        if needs > lowest:
            lowest, why = needs, []
        if needs == lowest:
            why.append(f"{name} ({version})")
    return lowest, why
