"""What comes to the package as Python's objects, as anything that Python has.

    fuzz_python.py pickles|arguments [--seconds N] [--runs N] [--seed N] [FILE-OR-FOLDER ...]

pickles     bytes of a peer to deserialize_descs(): nothing is made of them but lists of
            descriptors, and nothing else happens
arguments   tables, lists of tuples and indices: what is accepted is kept as it was given

Each input can be made again from its number: the first one is --seed. The input that ended the
process, or the first of which a promise did not hold, is left in ./fuzz-failure-TARGET.
"""

import argparse
import logging
import mmap
import os
import pickle
import random
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import nixl._bindings as nb
from nixl import _pickles
from nixl._api import nixl_agent, nixl_agent_config

LONGEST = 1 << 16
MEM_TYPES = (nb.DRAM_SEG, nb.VRAM_SEG, nb.BLK_SEG, nb.OBJ_SEG, nb.FILE_SEG)
TELLING = (0, 1, -1, 2, 127, 128, 255, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64)


def require(holds, what):
    if not holds:
        raise AssertionError(what)


# --- pickles --------------------------------------------------------------------------------------

# Instructions of pickles, with arguments that lead somewhere.
WORDS = [
    *(b"\x80" + bytes([protocol]) for protocol in range(6)),
    *(b"c" + name + b"\n" for name in (b"nixl_cu12._bindings\nnixlXferDList", b"os\nsystem",
                                       b"nixl._bindings\nnixlRegDList", b"copyreg\n__newobj__",
                                       b"copy_reg\n__newobj__", b"_codecs\nencode",
                                       b"builtins\neval", b"nixl._bindings\nnixlAgent",
                                       b"nixl._pickles\n_empty", b"builtins\ngetattr")),
    *(b"\x8c" + bytes([len(text)]) + text for text in (b"os", b"system", b"nixl._bindings",
                                                       b"nixlXferDList", b"latin1", b"x")),
    b"X\x01\x00\x00\x00a", b"Vlatin1\n", b"\x93", b"\x95" + bytes(8), b"C\x00", b"C\x03abc",
    b"B\x02\x00\x00\x00ab", b"K\x01", b"J\xff\xff\xff\xff", b"I1\n", b"L-5L\n", b"F1.5\n",
    b"G" + bytes(8), b"\x8a\x01\xff", b"N", b"\x88", b"\x89", b"(", b")", b"]", b"}", b"\x8f",
    b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"\x90", b"\x85", b"\x86", b"\x87", b"0", b"1", b"2",
    b"q\x00", b"q\x05", b"r\x00\x00\x00\x40", b"p0\n", b"p77777777777\n", b"\x94", b"h\x00",
    b"j\x00\x00\x00\x00", b"g0\n", b"R", b"\x81", b"\x92", b"b", b"o", b"ios\nsystem\n",
    b"\x82\x01", b"P1\n", b"Q", b"\x97", b"\x98", b"\x8e" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b".",
]  # fmt: skip

PLAIN = (int, float, str, bytes, bool, type(None))
LISTS = (nb.nixlXferDList, nb.nixlRegDList)
ALLOWED = (*LISTS, _pickles._empty, _pickles._encode)

_watching = False
_seen = []


def _watch(event, arguments):
    if _watching:
        _seen.append((event, arguments))


def example_pickles():
    lists = [
        nb.nixlXferDList(nb.DRAM_SEG, [(1, 2, 3), (2**64 - 1, 5, 6)]),
        nb.nixlRegDList(nb.FILE_SEG, [(1, 2, 3, "ab"), (4, 5, 6, b"\0\xff")]),
        nb.nixlXferDList(nb.VRAM_SEG, []),
    ]
    values = [*lists, lists, (lists[0], [1, 2**70, -1.5, "a", b"b", None, True])]
    return [pickle.dumps(value, p) for value in values for p in range(pickle.HIGHEST_PROTOCOL + 1)]


def mutated(draw, corpus):
    data = bytearray(draw.choice(corpus) if draw.random() < 0.8 else b"")
    for _ in range(draw.randint(1, 6)):
        at = draw.randint(0, len(data))
        n = draw.randint(1, 8)
        how = draw.randrange(7)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif how == 1 and data:
            data[at % len(data)] = draw.randrange(256)
        elif how == 2:
            del data[at : at + n]
        elif how == 3:
            other = draw.choice(corpus)
            start = draw.randint(0, len(other))
            data[at:at] = other[start : start + draw.randint(0, 60)]
        elif how == 4:
            number = draw.choice(TELLING) & (2**64 - 1)
            width = draw.choice((1, 2, 4, 8))
            data[at : at + width] = number.to_bytes(8, "little")[:width]
        else:
            data[at:at] = b"".join(draw.choice(WORDS) for _ in range(n))
    if draw.random() < 0.5:
        data += b"."
    return bytes(data[:LONGEST])


def check_made(value, depth=0):
    if type(value) in (list, tuple):
        if depth < 20:  # a list may hold itself
            for member in value:
                check_made(member, depth + 1)
        return
    known = type(value) in PLAIN + LISTS or value in ALLOWED
    require(known, f"a pickle made a {type(value)}")
    if type(value) in LISTS:
        try:
            rows = [value[i] for i in range(len(value))]
        except TypeError:
            return  # never got a state: of no use, and does no harm
        require(type(value)(value.getType(), rows) == value, "a list that cannot be made again")


def try_pickle(data):
    global _watching
    del _seen[:]
    _watching = True
    try:
        value = _pickles.load(data)
    except pickle.UnpicklingError:
        return
    finally:
        _watching = False
        require(not _seen, f"reading a pickle did {_seen[:1]}")
    check_made(value)


# --- arguments ------------------------------------------------------------------------------------


class Odd:
    """A number with side effects."""

    def __init__(self, value, effect=None):
        self.value, self.effect = value, effect

    def __index__(self):
        if self.effect is not None:
            self.effect()
        return self.value


def number(draw, effect=None):
    kind = draw.randrange(12)
    if kind < 6:
        return draw.randrange(1000)
    if kind < 9:
        return draw.choice(TELLING)
    if kind == 9:
        return draw.choice((True, None, "1", b"1", 1.0, 1.5, float("nan"), (), np.float32(3)))
    if kind == 10:
        return draw.choice((np.uint64(2**64 - 1), np.int8(-1), np.bool_(True), np.int32(7)))
    return Odd(draw.choice(TELLING), effect)


META = (b"", "", b"\xff", "\udcff", "\ud800", bytearray(b"x"), 5, None)


def descriptors(draw, members):
    """A list of tuples, mostly of the right length, which some of their numbers change."""
    rows = []

    def effect():
        if draw.random() < 0.5:
            del rows[:]
        else:
            rows.append((1, 2, 3))

    for _ in range(draw.randrange(6)):
        row = [number(draw, effect) for _ in range(3)]
        if members == 4:
            row.append(draw.choice(META))
        if draw.random() < 0.05:
            row.append(0)
        rows.append(tuple(row) if draw.random() < 0.97 else row)
    return rows


SHAPES = ((0, 3), (1, 3), (4, 3), (4, 5), (3,), (2, 4), (2, 3, 1), (), (3, 0), (7, 3))
DTYPES = "u8 i8 u4 i4 u2 i1 f8 f4 c16 >u8 >i8 ? O S8 M8[s] u8,u8".split()


def table(draw):
    shape = draw.choice(SHAPES)
    dtype = draw.choice(DTYPES) if draw.random() < 0.5 else draw.choice(("u8", "i8"))
    array = np.zeros(shape, dtype)
    if array.dtype.kind in "ui" and array.size:
        top = 2 ** (8 * array.itemsize)
        flat = array.reshape(-1)
        for i in range(flat.size):
            value = draw.choice(TELLING) if draw.random() < 0.5 else draw.randrange(5000)
            flat[i : i + 1] = np.array([value % top], "u8").astype(array.dtype)
    how = draw.randrange(8)
    if how == 0 and array.ndim > 0:
        array = array[::-1]
    elif how == 1:
        array = array.T
    elif how == 2:
        array.flags.writeable = False
    elif how == 3 and array.ndim == 2:
        array = np.asfortranarray(array)
    elif how == 4 and array.ndim == 2:
        array = np.broadcast_to(array[:1], array.shape)
    return array


def indices(draw):
    how = draw.randrange(8)
    items = [number(draw) for _ in range(draw.randrange(8))]
    if how == 0:
        return draw.choice((5, None, "12", b"12", {}, object(), 1.5, iter([1]), range(3), {1, 2}))
    if how < 3:
        return [draw.randrange(16) for _ in range(draw.randrange(8))]
    if how < 5:
        shrinking = []
        shrinking.extend(
            Odd(draw.randrange(16), shrinking.clear) if draw.random() < 0.2 else item
            for item in items
        )
        return shrinking
    return table(draw).reshape(-1) if how == 5 else table(draw)


# What a wrong argument may raise.
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, OverflowError, MemoryError, KeyError)
REFUSALS += tuple(
    error for name, error in vars(nb).items() if name.startswith("nixl") and name.endswith("Error")
)


def refused(call, *arguments):
    """What the call returns; None when it refuses its arguments in one of the known ways."""
    try:
        return call(*arguments)
    except REFUSALS as error:
        require(str(error) or isinstance(error, MemoryError), f"{call} refuses without a word")
        return None


def as_tuples(made):
    return [made[i] for i in range(len(made))]


class Arguments:
    def __init__(self):
        self.memory = np.zeros(16 * 64, np.uint8)
        self.agent = nixl_agent("fuzzed", nixl_agent_config(backends=["LOOPBACK"]))
        self.agent.register_memory([self.memory])
        base = self.memory.ctypes.data
        rows = [(base + i * 64, 64, 0) for i in range(16)]
        self.sides = [
            self.agent.prep_xfer_dlist(who, rows, "DRAM") for who in ("NIXL_INIT_AGENT", "fuzzed")
        ]

    def one(self, draw):
        draw.choice((self.tables, self.tuples, self.operations, self.prepared))(draw)

    def tables(self, draw):
        array, kind = table(draw), draw.choice(MEM_TYPES)
        for cls in (nb.nixlXferDList, nb.nixlRegDList):
            made = refused(cls, kind, array)
            if made is None:
                continue
            require(made.getType() == kind, "a list of another kind")
            given = [tuple(row) for row in array.view("u8").tolist()]
            require([row[:3] for row in as_tuples(made)] == given, "a table that is kept otherwise")
        refused(self.agent.get_xfer_descs, array, "DRAM")

    def tuples(self, draw):
        for cls, members in ((nb.nixlXferDList, 3), (nb.nixlRegDList, 4), (nb.nixlRemoteDList, 4)):
            rows = descriptors(draw, members)
            tame = all(type(r) is tuple and all(type(n) is int for n in r[:3]) for r in rows)
            given = list(rows)
            made = refused(cls, nb.DRAM_SEG, rows)
            if made is not None and tame:
                require([r[:3] for r in as_tuples(made)] == [r[:3] for r in given], "other rows")
            elif made is not None:
                as_tuples(made)
        size = draw.choice((0, 1, 2, -1, 2**62, 2**64 // 3 + 1, 2**63, None, "5"))
        refused(nb.nixlXferDList, nb.DRAM_SEG, size)

    def operations(self, draw):
        made = nb.nixlXferDList(nb.DRAM_SEG, [(i, i, i) for i in range(draw.randrange(5))])
        model = as_tuples(made)
        for _ in range(draw.randrange(12)):
            row = tuple(number(draw, made.clear) for _ in range(draw.choice((3, 3, 3, 2, 4))))
            at = draw.choice((0, 1, len(made), len(made) - 1, 2**63, -1))
            how = draw.randrange(6)
            if how == 0:
                refused(made.append, row)
            elif how == 1:
                refused(made.__setitem__, at, row)
            elif how == 2:
                refused(made.remDesc, at)
            elif how == 3:
                refused(made.index, row)
            elif how == 4:
                refused(made.__getitem__, at)
            else:
                refused(made.clear)
            model = as_tuples(made)
        require(nb.nixlXferDList(nb.DRAM_SEG, model) == made, "a list that is not its members")
        require(pickle.loads(pickle.dumps(made)) == made, "a list that is pickled as another one")

    def prepared(self, draw):
        left, right = indices(draw), indices(draw)
        if draw.random() < 0.5:
            right = left
        handle = refused(
            self.agent.make_prepped_xfer, "WRITE", self.sides[0], left, self.sides[1], right
        )
        if handle is not None:
            handle.release()


# --- the loop -------------------------------------------------------------------------------------


def read_corpus(places):
    corpus = []
    for place in map(Path, places):
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        corpus += [file.read_bytes() for file in files]
    return corpus


class Current:
    """The input that is being tried, where it survives the end of the process."""

    def __init__(self, target):
        self.path = Path(f"fuzz-failure-{target}")
        self.path.write_bytes(bytes(8 + LONGEST))
        with self.path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)

    def set(self, data):
        self.map[:8] = len(data).to_bytes(8, "little")
        self.map[8 : 8 + len(data)] = data

    def keep(self):
        data = self.map[8 : 8 + int.from_bytes(self.map[:8], "little")]
        self.path.write_bytes(data)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("target", choices=("pickles", "arguments"))
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("corpus", nargs="*")
    options = parser.parse_intermixed_args()

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # whose texts are looked up in files
    current, kept = Current(options.target), False
    corpus = read_corpus(options.corpus) if options.target == "pickles" else []
    if options.target == "pickles":
        examples = example_pickles()
        for data in examples:
            _pickles.load(data)  # imports modules, which is an event, before events are watched
        sys.addaudithook(_watch)
        first = corpus + examples
        corpus = corpus + examples
    else:
        first, tried = [], Arguments()
    end = time.monotonic() + options.seconds
    done = 0
    try:
        for data in first:
            current.set(data)
            try_pickle(data)
        while done < options.runs or time.monotonic() < end:
            seed = options.seed + done
            draw = random.Random(seed)
            if options.target == "pickles":
                data = mutated(draw, corpus)
                current.set(data)
                try_pickle(data)
            else:
                current.set(str(seed).encode())
                tried.one(draw)
            done += 1
    except BaseException:
        kept = True
        current.keep()
        print(f"fuzz_python: input number {options.seed + done} of {options.target}, which is left "
              f"in {current.path.resolve()}", file=sys.stderr)  # fmt: skip
        raise
    finally:
        if not kept:
            os.unlink(str(current.path))
    print(f"{len(first)} inputs of the corpus and {done} others, seed {options.seed}")


if __name__ == "__main__":
    main()
