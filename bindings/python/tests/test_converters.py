"""What get_xfer_descs(), get_reg_descs() and register_memory() make of what they are given.

NONE stands for "a line in the log, and None", which programs check for.
"""

import sys

import numpy as np
import pytest

import fake_torch
import nixl._bindings as nb
from binding_helpers import address

NONE = "None"
MEMORY = np.zeros(100)
OTHER = np.zeros((4, 5), np.float32)
STEPPED = np.zeros((4, 5))[:, ::2]
DRAM_TABLE = np.array([[1, 2, 3], [4, 5, 6]])


def tensor(array, device=-1):
    return fake_torch.Tensor(array, device)


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch)


def memory(*arrays):
    return [(address(a), a.nbytes, 0) for a in arrays]


XFER_CASES = {
    "transfer list": (nb.nixlXferDList(nb.VRAM_SEG, [(1, 2, 3)]), None, [(1, 2, 3)]),
    "registration list": (nb.nixlRegDList(nb.DRAM_SEG), None, NONE),
    "3-tuples": ([(1, 2, 3), (4, 5, 6)], "DRAM", [(1, 2, 3), (4, 5, 6)]),
    "3-tuples without mem_type": ([(1, 2, 3)], None, NONE),
    "2-tuples": ([(1, 2)], "DRAM", NONE),
    "4-tuples": ([(1, 2, 3, "")], "DRAM", NONE),
    "a later tuple too long": ([(1, 2, 3), (1, 2, 3, 4)], "DRAM", ValueError),
    "a later list": ([(1, 2, 3), [1, 2, 3]], "DRAM", TypeError),
    "a tuple of tuples": (((1, 2, 3),), "DRAM", TypeError),
    "lists": ([[1, 2, 3]], "DRAM", NONE),
    "a negative number": ([(-1, 2, 3)], "DRAM", RuntimeError),
    "a float": ([(1.0, 2, 3)], "DRAM", RuntimeError),
    "numpy numbers": ([(np.uint64(1), np.int32(2), np.bool_(False))], "DRAM", [(1, 2, 0)]),
    "deprecated cpu": ([(1, 2, 3)], "cpu", [(1, 2, 3)]),
    "unknown mem_type": ([(1, 2, 3)], "DISK", KeyError),
    "a member as mem_type": ([(1, 2, 3)], nb.DRAM_SEG, KeyError),
    "an empty list": ([], "DRAM", IndexError),
    "None": (None, "DRAM", TypeError),
    "a number": (5, "DRAM", TypeError),
    "a generator": ((x for x in [(1, 2, 3)]), "DRAM", TypeError),
    "a text": ("abc", "DRAM", NONE),
    "bytes": (b"abc", "DRAM", NONE),
    "a table": (DRAM_TABLE, "DRAM", [(1, 2, 3), (4, 5, 6)]),
    "a uint64 table": (DRAM_TABLE.astype(np.uint64), "DRAM", [(1, 2, 3), (4, 5, 6)]),
    "a table without mem_type": (DRAM_TABLE, None, NONE),
    "a table of floats": (DRAM_TABLE.astype(float), "DRAM", ValueError),
    "a table of int32": (DRAM_TABLE.astype(np.int32), "DRAM", ValueError),
    "a big-endian table": (DRAM_TABLE.astype(">i8"), "DRAM", ValueError),
    "a table in Fortran order": (np.asfortranarray(DRAM_TABLE), "DRAM", ValueError),
    "a table of 4 columns": (np.zeros((2, 4), np.int64), "DRAM", NONE),
    "a table of 5 columns": (np.zeros((2, 5), np.int64), "DRAM", NONE),
    "an empty table": (np.zeros((0, 3), np.int64), "DRAM", IndexError),
    "a tensor": (tensor(MEMORY), None, memory(MEMORY)),
    "a tensor on a GPU": (tensor(MEMORY, 2), None, [(address(MEMORY), MEMORY.nbytes, 2)]),
    "a stepped tensor": (tensor(STEPPED), None, NONE),
    "a tensor of no dimension": (tensor(np.zeros(())), None, IndexError),
    "tensors": ([tensor(MEMORY), tensor(OTHER)], None, memory(MEMORY, OTHER)),
    "a tuple of tensors": ((tensor(MEMORY), tensor(OTHER)), None, memory(MEMORY, OTHER)),
    "tensors, one stepped": ([tensor(MEMORY), tensor(STEPPED)], None, NONE),
    "tensors of two devices": ([tensor(MEMORY), tensor(OTHER, 0)], None, NONE),
    "a number among tensors": ([tensor(MEMORY), 5], None, AttributeError),
    # Ours, where upstream gives None.
    "an array": (MEMORY, None, memory(MEMORY)),
    "arrays": ([MEMORY, OTHER], None, memory(MEMORY, OTHER)),
    "arrays and DRAM": ([MEMORY, OTHER], "DRAM", memory(MEMORY, OTHER)),
    "arrays as VRAM": ([MEMORY], "VRAM", NONE),
    "a stepped array": ([STEPPED], None, NONE),
}
REG_CASES = {
    "transfer list": (nb.nixlXferDList(nb.VRAM_SEG, [(1, 2, 3)]), None, NONE),
    "4-tuples": ([(1, 2, 3, "x"), (4, 5, 6, b"\0")], "FILE", [(1, 2, 3, b"x"), (4, 5, 6, b"\0")]),
    "4-tuples without mem_type": ([(1, 2, 3, "x")], None, NONE),
    "3-tuples": ([(1, 2, 3)], "DRAM", NONE),
    "an odd meta information": ([(1, 2, 3, 4)], "DRAM", RuntimeError),
    "a table": (DRAM_TABLE, "DRAM", [(1, 2, 3, b""), (4, 5, 6, b"")]),
    "a tensor": (tensor(MEMORY), None, [(*memory(MEMORY)[0], b"")]),
    "arrays": ([MEMORY], None, [(*memory(MEMORY)[0], b"")]),
}


def check(convert, descs, mem_type, expected):
    if isinstance(expected, type):
        with pytest.raises(expected):
            convert(descs, mem_type)
    elif expected is NONE:
        assert convert(descs, mem_type) is None
    else:
        assert list(convert(descs, mem_type)) == expected


@pytest.mark.parametrize("name", XFER_CASES)
def test_transfer_descriptors(loop, name):
    check(loop.get_xfer_descs, *XFER_CASES[name])


@pytest.mark.parametrize("name", REG_CASES)
def test_registration_descriptors(loop, name):
    check(loop.get_reg_descs, *REG_CASES[name])


def test_lists_pass_through(loop):
    for convert, descs in (
        (loop.get_xfer_descs, nb.nixlXferDList(nb.DRAM_SEG)),
        (loop.get_reg_descs, nb.nixlRegDList(nb.DRAM_SEG)),
        (loop.get_remote_descs, nb.nixlRemoteDList(nb.DRAM_SEG)),
    ):
        assert convert(descs) is descs


def test_kinds_of_memory(loop):
    for name, kind in {
        "DRAM": nb.DRAM_SEG,
        "VRAM": nb.VRAM_SEG,
        "FILE": nb.FILE_SEG,
        "BLOCK": nb.BLK_SEG,
        "OBJ": nb.OBJ_SEG,
        "cuda": nb.VRAM_SEG,
    }.items():
        assert loop.get_xfer_descs([(1, 2, 3)], name).getType() is kind
        assert loop.nixl_mems[name] is kind
    assert loop.get_xfer_descs(tensor(MEMORY)).getType() is nb.DRAM_SEG
    assert loop.get_xfer_descs(tensor(MEMORY, 0)).getType() is nb.VRAM_SEG


REMOTE_CASES = {
    "4-tuples": ([(1, 2, 3, "p"), (4, 5, 6, b"q")], "VRAM", [(1, 2, 3, "p"), (4, 5, 6, "q")]),
    "3-tuples": ([(1, 2, 3)], "VRAM", NONE),
    "4-tuples without mem_type": ([(1, 2, 3, "p")], None, NONE),
    "a tuple of tuples": (((1, 2, 3, "p"),), "VRAM", TypeError),
    "a later tuple too short": ([(1, 2, 3, "p"), (1, 2)], "VRAM", ValueError),
    "lists": ([[1, 2, 3, "p"]], "VRAM", NONE),
    "numbers": ([1], "VRAM", NONE),
    "unknown mem_type": ([(1, 2, 3, "p")], "DISK", KeyError),
    "an empty list": ([], "VRAM", IndexError),
    "an empty dictionary": ({}, "VRAM", KeyError),
    "a number": (1.5, "VRAM", TypeError),
    "a table": (DRAM_TABLE, "VRAM", NONE),
}


@pytest.mark.parametrize("name", REMOTE_CASES)
def test_remote_descriptors(loop, name):
    check(loop.get_remote_descs, *REMOTE_CASES[name])


def test_registration_takes_tuples_of_three(loop):
    descs = loop.register_memory([(address(MEMORY), MEMORY.nbytes, 0)], "DRAM")
    assert list(descs) == [(*memory(MEMORY)[0], b"")]
    loop.deregister_memory(descs)


def test_registered_objects_live_until_deregistered(loop):
    import gc
    import weakref

    class Owned(np.ndarray):
        pass

    array = np.zeros(4096, np.uint8).view(Owned)
    gone = weakref.ref(array)
    descs = loop.register_memory([array])
    again = nb.nixlRegDList(nb.DRAM_SEG, list(descs))
    del array, descs
    gc.collect()
    assert gone() is not None
    loop.deregister_memory(again)
    gc.collect()
    assert gone() is None


def test_serialised_descriptors_come_back(loop):
    for descs in (nb.nixlXferDList(nb.DRAM_SEG, [(1, 2, 3)]), nb.nixlRegDList(nb.OBJ_SEG)):
        assert loop.deserialize_descs(loop.get_serialized_descs(descs)) == descs
