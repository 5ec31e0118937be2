"""What is in the wheel, and what it asks of the systems that it is for."""

import base64
import csv
import hashlib
import os
import platform
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import elf

pytestmark = pytest.mark.timeout(600)  # the first test waits for the wheel
ROOT = Path(__file__).resolve().parents[2]
VERSION = "2.0.0"
PYTHON = "cp%d%d" % sys.version_info[:2]
PROMISED = (2, 34)  # glibc: Enterprise Linux 9, Ubuntu 22.04, Debian 12; docs/install.md says so

MAY_NEED = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1",
            "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libgcc_s.so.1", "libstdc++.so.6",
            "libnixl.so.2"}


@pytest.fixture(scope="session")
def binaries(contents):
    found = {str(path.relative_to(contents)): path for path in contents.rglob("*")
             if path.is_file() and elf.is_elf(path)}
    assert found
    return found


@pytest.fixture(scope="session")
def metadata(contents):
    return Parser().parsestr((contents / f"nixl-{VERSION}.dist-info/METADATA").read_text())


def told_by(*command):
    return subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE,
                          universal_newlines=True).stdout


def names_of(wheel):
    with zipfile.ZipFile(str(wheel)) as file:
        return [name for name in file.namelist() if not name.endswith("/")]


def test_the_file_name_and_its_tag_agree(wheel, contents):
    parts = re.fullmatch(r"nixl-([0-9.]+)-(cp\d+)-(cp\d+)-(manylinux_2_\d+_\w+)\.whl", wheel.name)
    assert parts, wheel.name
    assert parts.groups()[:3] == (VERSION, PYTHON, PYTHON)
    assert parts[4].endswith("_" + platform.machine())
    lines = (contents / f"nixl-{VERSION}.dist-info/WHEEL").read_text().splitlines()
    tags = [line for line in lines if line.startswith("Tag:")]
    assert tags == [f"Tag: {'-'.join(parts.groups()[1:])}"]
    assert "Root-Is-Purelib: false" in lines


def test_pip_takes_it_here(wheel):
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename

    assert parse_wheel_filename(wheel.name)[3] & set(sys_tags())


def test_the_record_fits_the_files(wheel, contents):
    info = f"nixl-{VERSION}.dist-info"
    with open(str(contents / info / "RECORD"), newline="") as file:
        rows = list(csv.reader(file))
    assert sorted(row[0] for row in rows) == sorted(names_of(wheel))
    for name, digest, size in rows:
        if name == f"{info}/RECORD":
            assert (digest, size) == ("", "")
            continue
        data = (contents / name).read_bytes()
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={expected}", len(data)), name


def test_it_holds_what_it_should(wheel):
    names = names_of(wheel)
    headers = {f"nixl/{path.relative_to(ROOT)}" for path in (ROOT / "include/nixl").rglob("*.h")}
    assert headers <= set(names) and len(headers) >= 4
    for name in ("nixl/bin/nixl-info", "nixl/bin/nixlbench", "nixl/__init__.py", "nixl/py.typed",
                 "nixl/_bindings.pyi", "nixl_cu12/__init__.py", "nixl_cu13/py.typed",
                 ".nixl.mesonpy.libs/libnixl.so.2", ".nixl.mesonpy.libs/plugins/libplugin_UCX.so"):
        assert name in names, name
    assert len([n for n in names if re.fullmatch(r"nixl/_bindings\..*\.so", n)]) == 1
    tops = {name.split("/")[0] for name in names}
    assert tops == {"nixl", "nixl_cu12", "nixl_cu13", ".nixl.mesonpy.libs",
                    f"nixl-{VERSION}.dist-info"}
    for name in names:
        assert not re.search(r"_test|\.cc$|\.build$|hostile|__pycache__", name), name


def test_every_python_module_of_the_sources_is_in_it(wheel):
    names = set(names_of(wheel))
    for package in ("nixl", "nixl_cu12", "nixl_cu13"):
        for path in (ROOT / "bindings/python" / package).rglob("*.py"):
            name = str(path.relative_to(ROOT / "bindings/python"))
            assert name in names, f"{name} is missing: its meson.build does not install it"


def test_programs_may_be_run(wheel):
    with zipfile.ZipFile(str(wheel)) as file:
        for entry in file.infolist():
            runs = bool(entry.external_attr >> 16 & 0o111)
            if entry.filename.startswith("nixl/bin/"):
                assert runs, entry.filename
            elif not entry.filename.endswith((".so", ".so.2")):
                assert not runs, entry.filename


def test_metadata(metadata, contents):
    assert (metadata["Name"], metadata["Version"]) == ("nixl", VERSION)
    assert metadata["Requires-Python"] == ">=3.8"
    assert metadata["License-Expression"] == "Apache-2.0"
    info = contents / f"nixl-{VERSION}.dist-info"
    for name in ("LICENSE", "LICENSE-third-party"):
        assert name in metadata.get_all("License-File")
        assert (info / "licenses" / name).read_bytes() == (ROOT / name).read_bytes()
    always = [row for row in metadata.get_all("Requires-Dist") if "extra ==" not in row]
    assert always == ["numpy"]


@pytest.mark.parametrize("extra, runtime, ucx", [
    ("cu12", "nvidia-cuda-runtime-cu12", "libucx-cu12"),
    ("cu13", "nvidia-cuda-runtime", "libucx-cu13"),
])
def test_extras_name_the_vendors_runtimes(metadata, extra, runtime, ucx):
    assert extra in metadata.get_all("Provides-Extra")
    rows = [row for row in metadata.get_all("Requires-Dist")
            if re.search(f"extra == ['\"]{extra}['\"]", row)]
    assert sorted(re.match(r"[\w-]+", row)[0] for row in rows) == sorted([runtime, ucx])


def test_console_scripts(contents):
    lines = (contents / f"nixl-{VERSION}.dist-info/entry_points.txt").read_text().split("\n")
    assert lines[0] == "[console_scripts]"
    commands = {line.split(" = ")[0] for line in lines[1:] if line}
    assert commands == {"nixl-config", "nixl-info", "nixlbench"}


def test_the_packages_are_named_for_python_3_10(contents):
    text = (contents / f"nixl-{VERSION}.dist-info/top_level.txt").read_text()
    assert text.split() == ["nixl", "nixl_cu12", "nixl_cu13"]


def test_nothing_but_the_systems_libraries_is_needed(binaries):
    for name, path in binaries.items():
        assert set(elf.dynamic(path)["NEEDED"]) <= MAY_NEED, name


def test_the_library_is_found_wherever_the_wheel_lies(binaries, contents):
    library = contents / ".nixl.mesonpy.libs"
    for name, path in binaries.items():
        told = elf.dynamic(path)
        assert "RPATH" not in told, name
        places = [place for entry in told.get("RUNPATH", []) for place in entry.split(":")]
        for place in places:
            assert place.startswith("$ORIGIN/"), f"{name}: {place}"
        found = [(path.parent / place[len("$ORIGIN/"):]).resolve() for place in places]
        if "libnixl.so.2" in told["NEEDED"]:
            assert library.resolve() in found, f"{name}: {places}"
        else:
            assert not found, f"{name}: {places}"
    assert elf.dynamic(library / "libnixl.so.2")["SONAME"] == ["libnixl.so.2"]


def test_only_documented_symbols_are_exported(binaries):
    for name, path in binaries.items():
        given = elf.symbols(path)[1]
        if name.startswith("nixl/_bindings"):
            assert given == {"PyInit__bindings"}, name
        elif "/plugins/" in name:
            assert given == {"nixl_backend_init"}, name
        elif name.endswith("libnixl.so.2"):
            plain = told_by("c++filt", "--no-params", *sorted(given)).split("\n")
            for symbol in filter(None, plain):
                assert re.match(r"(typeinfo for |typeinfo name for |vtable for )?nixl::\w+"
                                r"|nixl_capi_\w+$", symbol), symbol
            assert any(symbol.startswith("nixl::Agent::") for symbol in plain)


def test_the_tag_promises_what_the_files_need(wheel, binaries):
    tag = tuple(map(int, re.search(r"manylinux_(\d+)_(\d+)", wheel.name).groups()))
    floors = {name: elf.floor(path) for name, path in binaries.items()}
    assert tag == max((2, 17), *(glibc for glibc, _ in floors.values())), floors
    newest = tuple(map(int, platform.libc_ver()[1].split(".")))
    if newest > (2, 36):
        pytest.skip(f"built with glibc {newest}: the promise holds for wheels built on Debian 12")
    for name, (glibc, why) in floors.items():
        assert glibc <= PROMISED, f"{name} excludes systems that docs/install.md promises: {why}"


def test_no_path_of_this_machine_is_in_it(contents, binaries):
    home = os.path.expanduser("~")
    here = [str(ROOT) + "/", home + "/", sys.prefix + "/", sys.base_prefix + "/"]
    for path in contents.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for place in here:
            if place not in ("/usr/", "//"):
                at = data.find(place.encode())
                assert at < 0, f"{path.relative_to(contents)}: {data[max(0, at - 20):at + 120]!r}"


def test_no_debug_information_is_shipped(binaries):
    for name, path in binaries.items():
        assert ".debug_info" not in told_by("readelf", "--wide", "-S", str(path)), name


class TestFloor:
    """dev/elf.py finds what a symbol asks for."""

    @pytest.mark.parametrize("wanted, glibc", [
        ({("memcpy", "GLIBC_2.14")}, (2, 17)),
        ({("dlopen", "GLIBC_2.34")}, (2, 34)),
        ({("memcpy", "GLIBC_2.14"), ("f", "GLIBCXX_3.4.29")}, (2, 34)),
        ({("std::__glibcxx_assert_fail", "GLIBCXX_3.4.30")}, (2, 35)),
        ({("f", "GLIBCXX_3.4.26"), ("g", "GLIBC_2.33")}, (2, 33)),
        ({("f", "CXXABI_1.3.9"), ("g", "GCC_3.0"), ("h", "")}, (2, 28)),
    ])
    def test_of_symbols(self, monkeypatch, wanted, glibc):
        monkeypatch.setattr(elf, "symbols", lambda path: (wanted, set()))
        assert elf.floor("x")[0] == glibc

    @pytest.mark.parametrize("version", ["GLIBC_PRIVATE", "GLIBCXX_9.9.9", "OPENSSL_3.0.0"])
    def test_what_no_system_has_is_refused(self, monkeypatch, version):
        monkeypatch.setattr(elf, "symbols", lambda path: ({("f", version)}, set()))
        with pytest.raises(ValueError, match=f"f of {version}"):
            elf.floor("x")
