"""Reads pickled lists of descriptors that come from a peer, and nothing else.

A pickle is a program: it names functions and calls them, and whoever can send one to
``pickle.loads()`` runs what they like in the process that reads it. What is read here may name the
two classes of lists and no more; around them there may be lists and tuples of numbers and texts.
"""

import io
import pickle
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

from nixl import _bindings

# Both versions of the field's package, and the name that ours has beside either of them.
_MODULES = ("nixl_cu12._bindings", "nixl_cu13._bindings", "nixl._bindings")
_CLASSES = {"nixlXferDList": _bindings.nixlXferDList, "nixlRegDList": _bindings.nixlRegDList}

# Instructions that every pickler writes for such values. Not here: those that name objects in
# another way (EXT1, PERSID, ...), and sets and dictionaries, whose keys can be built so that
# hashing them takes for ever.
_KNOWN = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET "
    "GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD".split()
)
_NUMBERED = ("PUT", "BINPUT", "LONG_BINPUT")

# One list as protocols 4 and 5 write it, up to its bytes, and what follows them: read at once,
# because programs do so for every transfer.
_ONE_LIST = re.compile(
    rb"\x80[\x04\x05]\x95.{8}"
    rb"\x8c.(nixl(?:_cu1[23])?\._bindings)\x94\x8c.(nixl(?:Xfer|Reg)DList)\x94\x93\x94"
    rb"\)\x81\x94(?:C(.)|B(.{4})|\x8e(.{8}))",
    re.DOTALL,
)
_ITS_END = b"\x94b."


def _empty(cls: "Any") -> "Any":
    """What old protocols call ``copyreg.__newobj__``: an object that gets its state later."""
    if cls not in _CLASSES.values():
        raise pickle.UnpicklingError(f"it makes a {cls!r}")
    return cls.__new__(cls)


def _encode(text: "Any", encoding: "Any") -> bytes:
    """What protocols 0 to 2 call ``_codecs.encode``: they have no bytes of their own."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it calls encode() for something else than bytes")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> "Any":
        if module in _MODULES and name in _CLASSES:
            return _CLASSES[name]
        if module in ("copyreg", "copy_reg") and name == "__newobj__":
            return _empty
        if module == "_codecs" and name == "encode":
            return _encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no list of descriptors")


def _check(data: bytes) -> None:
    """Looks at the instructions before any of them is carried out."""
    import pickletools

    for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if instruction.name not in _KNOWN:
            raise pickle.UnpicklingError(f"it holds the instruction {instruction.name}")
        # Python's reader makes room for as many objects as the largest number says. Writers count.
        if instruction.name in _NUMBERED and not 0 <= int(argument or 0) <= number:
            raise pickle.UnpicklingError(f"it numbers an object {argument}")


def load(data: "Any") -> "Any":
    """The list of descriptors, or lists and tuples with such lists, that a peer pickled.

    :param data: bytes, or what has a buffer of them.
    :raises pickle.UnpicklingError: the bytes are something else. Nothing of it was carried out
        that reaches beyond the lists.
    """
    pickled = bytes(memoryview(data))
    known = _ONE_LIST.match(pickled)
    if known and pickled.endswith(_ITS_END):
        length = int.from_bytes(known[known.lastindex or 0], "little")
        if known.end() + length + len(_ITS_END) == len(pickled):
            made = _empty(_CLASSES[known[2].decode()])
            made.__setstate__(pickled[known.end() : known.end() + length])
            return made
    try:
        _check(pickled)
        return _Unpickler(io.BytesIO(pickled)).load()
    except MemoryError:
        raise
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise pickle.UnpicklingError(
            f"cannot read {len(pickled)} bytes as descriptors, because {why}; give what "
            "get_serialized_descs() returned"
        ) from error
