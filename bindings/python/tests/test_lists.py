"""nixlXferDList, nixlRegDList and nixlRemoteDList, as programs and pickles know them."""

import copy
import pickle

import numpy as np
import pytest

import nixl._bindings as nb

BIG = 2**64 - 1
XFER = [(1, 2, 3), (BIG, 5, 6)]
REG = [(1, 2, 3, "ab"), (4, 5, 6, b"\0\xff")]


def transfer_list():
    return nb.nixlXferDList(nb.DRAM_SEG, XFER)


def registration_list():
    return nb.nixlRegDList(nb.FILE_SEG, REG)


def remote_list():
    return nb.nixlRemoteDList(nb.VRAM_SEG, [(1, 2, 3, "peer"), (4, 5, 6, "pé\0r")])


KINDS = [
    (nb.nixlXferDList, XFER[0]),
    (nb.nixlRegDList, (1, 2, 3, b"ab")),
    (nb.nixlRemoteDList, (1, 2, 3, "peer")),
]


@pytest.mark.parametrize("cls, row", KINDS)
def test_a_list_holds_what_was_put_in(cls, row):
    descs = cls(nb.VRAM_SEG)
    assert descs.isEmpty() and descs.descCount() == 0 and descs.getType() is nb.VRAM_SEG
    descs.addDesc(row)
    descs.append(row + ("more members are ignored",))
    assert descs.descCount() == len(descs) == 2 and not descs.isEmpty()
    assert descs[0] == descs[1] == row
    assert list(descs) == [row, row]
    changed = (7, 8, 9) + row[3:]
    descs[1] = changed
    assert descs[1] == changed
    descs.remDesc(0)
    assert list(descs) == [changed]
    descs.clear()
    assert descs.isEmpty()
    assert descs, "a list is true, also when it is empty"


@pytest.mark.parametrize("cls, row", KINDS)
def test_a_list_can_be_made_with_a_size(cls, row):
    assert cls(nb.DRAM_SEG, 3).descCount() == 3
    assert cls(nb.DRAM_SEG, init_size=2).descCount() == 2
    with pytest.raises(ValueError):
        cls(nb.DRAM_SEG, -1)


@pytest.mark.parametrize("make", [transfer_list, registration_list, remote_list])
def test_lists_compare_by_type_and_content(make):
    a, b = make(), make()
    assert a == b and not a != b
    b.remDesc(1)
    assert a != b
    assert a != type(a)(nb.BLK_SEG, list(a))
    assert a != 5 and not a == [1]
    with pytest.raises(TypeError):
        hash(a)


def test_registration_lists_compare_meta_information():
    a, b = registration_list(), registration_list()
    b[0] = (1, 2, 3, "other")
    assert a != b


def test_meta_information_is_bytes():
    descs = nb.nixlRegDList(
        nb.FILE_SEG, [(1, 1, 1, "é"), (1, 1, 1, bytearray(b"a\0b")), (1, 1, 1, b"\xff")]
    )
    assert [d[3] for d in descs] == ["é".encode(), b"a\0b", b"\xff"]


def test_numbers_may_be_of_numpy():
    row = (np.uint64(BIG), np.int32(2), np.bool_(True))
    assert nb.nixlXferDList(nb.DRAM_SEG, [row])[0] == (BIG, 2, 1)
    assert nb.nixlXferDList(nb.DRAM_SEG, [row]).index((BIG, 2, True)) == 0


@pytest.mark.parametrize(
    "error, make",
    [
        (ValueError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(1, 2)])),
        (ValueError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(1, 2, 3, 4)])),
        (ValueError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(1, 2, 3), (1, 2)])),
        (ValueError, lambda: nb.nixlRegDList(nb.DRAM_SEG, [(1, 2, 3)])),
        (TypeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [[1, 2, 3]])),
        (TypeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, ((1, 2, 3),))),
        (TypeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, 1.5)),
        (TypeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, b"bytes")),
        (TypeError, lambda: nb.nixlRegDList(nb.DRAM_SEG, bytearray(24))),
        (RuntimeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(np.float64(1), 2, 3)])),
        (RuntimeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(np.float32(1), 2, 3)])),
        (TypeError, lambda: nb.nixlXferDList(0, [(1, 2, 3)])),
        (TypeError, lambda: nb.nixlXferDList("DRAM", [])),
        (RuntimeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(-1, 2, 3)])),
        (RuntimeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(2**64, 2, 3)])),
        (RuntimeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [(1.0, 2, 3)])),
        (RuntimeError, lambda: nb.nixlXferDList(nb.DRAM_SEG, [("1", 2, 3)])),
        (RuntimeError, lambda: nb.nixlRegDList(nb.DRAM_SEG, [(1, 2, 3, 4)])),
        (RuntimeError, lambda: nb.nixlRegDList(nb.DRAM_SEG, [(1, 2, 3, None)])),
        (TypeError, lambda: nb.nixlRemoteDList(nb.DRAM_SEG, np.zeros((2, 3), np.uint64))),
        (IndexError, lambda: transfer_list()[2]),
        (TypeError, lambda: transfer_list()[-1]),
        (TypeError, lambda: transfer_list()["a"]),
        (IndexError, lambda: transfer_list().remDesc(2)),
        (IndexError, lambda: transfer_list().remDesc(-1)),
        (IndexError, lambda: transfer_list().addDesc((1, 2))),
        (TypeError, lambda: transfer_list().addDesc([1, 2, 3])),
        (TypeError, lambda: transfer_list().addDesc(1, 2, 3)),
        (RuntimeError, lambda: transfer_list().addDesc((1, 2, -3))),
        (IndexError, lambda: transfer_list().index((1, 2))),
        (nb.nixlNotFoundError, lambda: transfer_list().index((9, 9, 9))),
        (IndexError, lambda: registration_list().index((1, 2, 3))),
        (RuntimeError, lambda: registration_list().index((1, 2, 3, 4))),
    ],
)
def test_what_is_no_descriptor_is_refused(error, make):
    with pytest.raises(error):
        make()


def test_index_looks_at_the_range_only():
    assert transfer_list().index((BIG, 5, 6)) == 1
    assert registration_list().index((4, 5, 6, b"whatever")) == 1


def test_trim_drops_meta_information():
    trimmed = registration_list().trim()
    assert trimmed == nb.nixlXferDList(nb.FILE_SEG, [(1, 2, 3), (4, 5, 6)])


def test_print_writes_and_returns_nothing(capsys):
    assert transfer_list().print() is None
    assert "DRAM" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_tables_are_taken(dtype):
    table = np.arange(6, dtype=dtype).reshape(2, 3)
    assert list(nb.nixlXferDList(type=nb.DRAM_SEG, descs=table)) == [(0, 1, 2), (3, 4, 5)]
    assert list(nb.nixlRegDList(nb.DRAM_SEG, table)) == [(0, 1, 2, b""), (3, 4, 5, b"")]


def test_negative_numbers_of_a_table_wrap():
    assert nb.nixlXferDList(nb.DRAM_SEG, np.array([[-1, 2, 3]]))[0] == (BIG, 2, 3)


@pytest.mark.parametrize(
    "table, words",
    [
        (np.zeros((2, 3)), "uint64 or int64"),
        (np.zeros((2, 3), np.int32), "uint64 or int64"),
        (np.zeros((2, 3), ">i8"), "uint64 or int64"),
        (np.zeros((2, 4), np.int64), "Nx3"),
        (np.zeros(3, np.int64), "Nx3"),
        (np.zeros((3, 2), np.int64).T, "C-contiguous"),
        (np.zeros((4, 3), np.int64)[::2], "C-contiguous"),
    ],
)
def test_other_tables_are_refused(table, words):
    with pytest.raises(ValueError, match=words):
        nb.nixlXferDList(nb.DRAM_SEG, table)


# --- numbers that do something when they are read ------------------------------------------------


class Acting:
    def __init__(self, act):
        self.act = act

    def __index__(self):
        self.act()
        return 7


def test_a_list_of_tuples_may_change_while_it_is_read():
    for cls, rest in ((nb.nixlXferDList, ()), (nb.nixlRegDList, (b"meta",))):
        rows = []
        rows += [(1, Acting(rows.clear), 3) + rest, (4, 5, 6) + rest]
        made = cls(nb.DRAM_SEG, rows)
        assert rows == [] and [made[i][:3] for i in range(len(made))] == [(1, 7, 3)]


@pytest.mark.parametrize("cls", [nb.nixlXferDList, nb.nixlRegDList, nb.nixlRemoteDList])
def test_a_row_that_goes_while_it_is_set_is_an_index_error(cls):
    rest = () if cls is nb.nixlXferDList else ("a",)
    made = cls(nb.DRAM_SEG, [(1, 2, 3) + rest] * 3)
    with pytest.raises(IndexError, match="index 2 is out of range: the list has 0 descriptors"):
        made[2] = (1, Acting(made.clear), 3) + rest
    assert len(made) == 0


def test_a_size_that_no_memory_has_is_refused():
    for size in (2**62, 2**63 - 1, 2**64 // 3 + 1):  # the last one times 3 is 2, in 64 bits
        for cls in (nb.nixlXferDList, nb.nixlRegDList, nb.nixlRemoteDList):
            with pytest.raises((MemoryError, ValueError)):
                cls(nb.DRAM_SEG, size)


# --- pickles ------------------------------------------------------------------------------------

# What upstream 1.5.1 wrote for transfer_list(), registration_list() and an empty VRAM list.
GOLDEN = {
    "transfer": "800495b0000000000000008c136e69786c5f637531322e5f62696e64696e6773948c0d6e69786c5866"
    "6572444c69737494939429819443806e69786c5365724465737c6e69786c444c6973740a000000000000006e69786c"
    "42444c6973747c740400000000000000000000007c6e080000000000000002000000000000007c3000000000000000"
    "010000000000000002000000000000000300000000000000ffffffffffffffff050000000000000006000000000000"
    "007c94622e",
    "registration": "800495bc000000000000008c136e69786c5f637531322e5f62696e64696e6773948c0c6e69786c"
    "526567444c697374949394298194438d6e69786c5365724465737c6e69786c444c6973740a000000000000006e6978"
    "6c53444c6973747c740400000000000000040000007c6e080000000000000002000000000000007c1a000000000000"
    "0001000000000000000200000000000000030000000000000061627c1a000000000000000400000000000000050000"
    "0000000000060000000000000000ff7c94622e",
    "empty": "80049577000000000000008c136e69786c5f637531322e5f62696e64696e6773948c0d6e69786c586665"
    "72444c69737494939429819443476e69786c5365724465737c6e69786c444c6973740a000000000000006e69786c42"
    "444c6973747c740400000000000000010000007c6e080000000000000000000000000000007c94622e",
}
GOLDEN_LISTS = {
    "transfer": transfer_list(),
    "registration": registration_list(),
    "empty": nb.nixlXferDList(nb.VRAM_SEG),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_pickles_are_the_same_bytes_as_upstreams(name):
    golden = bytes.fromhex(GOLDEN[name])
    assert pickle.loads(golden) == GOLDEN_LISTS[name]
    assert pickle.dumps(GOLDEN_LISTS[name], 4) == golden


def test_pickles_of_the_other_cuda_version_are_read():
    golden = bytes.fromhex(GOLDEN["transfer"]).replace(b"nixl_cu12", b"nixl_cu13")
    assert pickle.loads(golden) == transfer_list()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("make", [transfer_list, registration_list])
def test_every_protocol_of_pickle_works(make, protocol):
    assert pickle.loads(pickle.dumps(make(), protocol)) == make()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_are_independent(duplicate):
    for make in (transfer_list, registration_list):
        a = make()
        b = duplicate(a)
        assert a == b
        b.clear()
        assert a == make()


def test_remote_lists_are_not_pickled():
    with pytest.raises(TypeError):
        pickle.dumps(remote_list())


@pytest.mark.parametrize("make", [transfer_list, registration_list])
def test_bytes_that_are_no_list_give_an_empty_one(make):
    state = make().__getstate__()
    cls = type(make())
    wrong = [state[:n] for n in range(len(state))]
    wrong += [state.replace(b"DList|t", b"dList|t"), b"nonsense"]
    wrong.append(state.replace(b"|n\x08", b"|n\x07"))
    wrong.append(state.replace(b"\x02" + b"\0" * 7 + b"|", b"\xff" * 7 + b"\x7f|", 1))
    for bytes_ in wrong:
        descs = cls.__new__(cls)
        descs.__setstate__(bytes_)
        assert descs.isEmpty(), bytes_


# --- enumerations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, number, text",
    [
        ("DRAM_SEG", 0, "nixl_mem_t"),
        ("VRAM_SEG", 1, "nixl_mem_t"),
        ("BLK_SEG", 2, "nixl_mem_t"),
        ("OBJ_SEG", 3, "nixl_mem_t"),
        ("FILE_SEG", 4, "nixl_mem_t"),
        ("NIXL_READ", 0, "nixl_xfer_op_t"),
        ("NIXL_WRITE", 1, "nixl_xfer_op_t"),
        ("NIXL_IN_PROG", 1, "nixl_status_t"),
        ("NIXL_SUCCESS", 0, "nixl_status_t"),
        ("NIXL_ERR_NOT_POSTED", -1, "nixl_status_t"),
        ("NIXL_ERR_NOT_SUPPORTED", -9, "nixl_status_t"),
        ("NIXL_ERR_NO_TELEMETRY", -12, "nixl_status_t"),
        ("NIXL_THREAD_SYNC_NONE", 0, "nixl_thread_sync_t"),
        ("NIXL_THREAD_SYNC_RW", 2, "nixl_thread_sync_t"),
        ("NIXL_COST_ANALYTICAL_BACKEND", 0, "nixl_cost_t"),
    ],
)
def test_members_are_numbers_with_names(name, number, text):
    member = getattr(nb, name)
    assert getattr(getattr(nb, text), name) is member
    assert int(member) == member.value == member == number
    assert repr(member) == f"<{text}.{name}: {number}>"
    assert str(member) == f"{member}" == f"{text}.{name}"
    assert pickle.loads(pickle.dumps(member)) is member


def test_the_default_sync_mode_is_none():
    assert nb.NIXL_THREAD_SYNC_DEFAULT is nb.NIXL_THREAD_SYNC_NONE
    assert nb.nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT is nb.NIXL_THREAD_SYNC_NONE
    assert "NIXL_THREAD_SYNC_DEFAULT" in nb.nixl_thread_sync_t.__members__
