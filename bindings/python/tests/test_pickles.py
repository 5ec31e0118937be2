"""deserialize_descs(): bytes of a peer make lists of descriptors, and nothing else."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nixl._bindings as nb
from nixl import _pickles

FUZZ = Path(__file__).resolve().parents[3] / "tests" / "fuzz" / "fuzz_python.py"
CORPUS = {"pickles": [str(FUZZ.parent / "corpus" / "pickles")], "arguments": []}


def transfer_list(n=2):
    return nb.nixlXferDList(nb.VRAM_SEG, [(i, 2, 2**64 - 1) for i in range(n)])


def registration_list():
    return nb.nixlRegDList(nb.FILE_SEG, [(1, 2, 3, "ab"), (4, 5, 6, b"\0\xff")])


class Command:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        transfer_list(),
        transfer_list(0),
        transfer_list(5000),  # whose pickle is not of one frame
        registration_list(),
        [transfer_list(), (registration_list(), [1, -1, 2**70, 1.5, "a", b"\xff", None, True])],
        None,
    ],
)
def test_lists_and_lists_of_them_are_read(loop, value, protocol):
    assert loop.deserialize_descs(pickle.dumps(value, protocol)) == value


def test_what_get_serialized_descs_gives_is_read(loop):
    for value in (transfer_list(), registration_list()):
        read = loop.deserialize_descs(loop.get_serialized_descs(value))
        assert type(read) is type(value) and read == value


def test_any_bytes_like_object_is_read(loop):
    data = loop.get_serialized_descs(transfer_list())
    for kind in (bytearray, memoryview, lambda d: np.frombuffer(d, np.uint8)):
        assert loop.deserialize_descs(kind(data)) == transfer_list()
    with pytest.raises(TypeError):
        loop.deserialize_descs("text")


@pytest.mark.parametrize("module", ["nixl", "nixl_cu12", "nixl_cu13"])
def test_the_names_of_all_versions_are_read(loop, module):
    data = b"c" + module.encode() + b"._bindings\nnixlXferDList\n)\x81C\x00b."
    assert type(loop.deserialize_descs(data)) is nb.nixlXferDList


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_command_is_run(loop, protocol):
    for value in (Command(), [transfer_list(), Command()]):
        with pytest.raises(pickle.UnpicklingError, match="names (posix|nt).system"):
            loop.deserialize_descs(pickle.dumps(value, protocol))


REFUSED = {
    "nothing": b"",
    "no pickle": b"anything",
    "a cut one": pickle.dumps(transfer_list())[:-3],
    "another class of ours": b"cnixl._bindings\nnixlAgent\n.",
    "a module of ours": b"cnixl._pickles\npickle\n.",
    "an enumerator": pickle.dumps(nb.DRAM_SEG),
    "a list made by its constructor": b"cnixl._bindings\nnixlXferDList\n(K\x00K\x05tR.",
    "a list that gets two states": b"cnixl._bindings\nnixlXferDList\n)\x81C\x00bC\x00b.",
    "a class that gets a state": b"cnixl._bindings\nnixlXferDList\nC\x00b.",
    "encode() to another encoding": b"c_codecs\nencode\n(Va\nVidna\ntR.",
    "__newobj__() of another object": b"ccopyreg\n__newobj__\n(Va\ntR.",
    "a registered extension": b"\x82\x01.",
    "a persistent number": b"P1\n.",
    "a set": pickle.dumps({1}),
    "a dictionary": pickle.dumps({1: 2}),
    "an array": pickle.dumps(np.zeros((2, 3), "u8")),
    # Python's reader would make room for 2^31 objects, 16 GiB.
    "a large number of an object": b"Nr\xff\xff\xff\x7f.",
    "a larger number of an object": b"Np99999999999\n.",
    "a negative number of an object": b"Np-5\n.",
}


@pytest.mark.filterwarnings("ignore:nanobind")  # of the second state, before it is refused
@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_in_a_sentence(loop, name):
    with pytest.raises(pickle.UnpicklingError) as refusal:
        loop.deserialize_descs(REFUSED[name])
    assert "as descriptors, because " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_undecodable_state_is_an_empty_list(loop):
    data = loop.get_serialized_descs(transfer_list())
    cut = data.replace(b"nixlSerDes|", b"nixlXXXXXX|")
    assert loop.deserialize_descs(cut) == nb.nixlXferDList(nb.DRAM_SEG)


def test_the_short_way_reads_what_the_long_one_reads():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for value in (transfer_list(), transfer_list(5000), registration_list()):
            data = pickle.dumps(value, protocol)
            assert bool(_pickles._ONE_LIST.match(data)) == (protocol >= 4)
            # Behind an instruction that does nothing, only the long way takes it.
            assert _pickles.load(b"N0" + data) == _pickles.load(data) == value


@pytest.mark.parametrize("target", ["pickles", "arguments"])
def test_some_random_inputs(target, tmp_path):
    done = subprocess.run(
        [sys.executable, "-B", str(FUZZ), target, "--runs", "3000", *CORPUS[target]],
        cwd=str(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout
    assert "3000 others" in done.stdout and not list(tmp_path.iterdir())
