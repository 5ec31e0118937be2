"""Where this implementation differs from upstream 1.5.1 on purpose: the one table.

docs/differences.md is written from it: `python differences.py` prints that page. A row has an
example, a program whose last line differs, which a test runs in both implementations; an example in
which upstream's process dies says so. Only what depends on a long history has none.
"""

import operator
import re
import warnings
from collections import namedtuple

import numpy as np

# One line of a program, what it gave there and here (see world.py), and the lines before it.
Step = namedtuple("Step", "expression theirs ours before")

Difference = namedtuple("Difference", "name theirs ours why example dies matches")

DIFFERENCES = []


# Newer NumPys' are none, not even with a warning.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        NUMPY_BOOLEANS_ARE_INTEGERS = operator.index(np.bool_(True)) == 1
    except TypeError:
        NUMPY_BOOLEANS_ARE_INTEGERS = False


def difference(name, theirs, ours, why, example, dies=False):
    """Adds a row; the decorated function says whether a step shows it."""

    def add(matches):
        DIFFERENCES.append(Difference(name, theirs, ours, why, example, dies, matches))
        return matches

    return add


def raised(result, *classes):
    return result[0] == "raised" and (not classes or result[1] in classes)


def gave(result):
    return result[0] == "gave"


def calls(step, *names):
    return any(re.search(rf"\b{name}\(", step.expression) for name in names)


def never(step):
    """For what programs avoid, as it brings upstream down."""
    return False


REGISTER = ("r", "a.register_memory([(A, K, 0, '')], 'DRAM')")
LIST = ("d", "a.get_xfer_descs([(A, 64, 0), (A+64, 64, 0)], 'DRAM')")
TARGET = ("e", "a.get_xfer_descs([(A+1024, 64, 0), (A+1088, 64, 0)], 'DRAM')")
COPY = ("h", "a.initialize_xfer('WRITE', d, e, 'a')")


# --- texts and types ----------------------------------------------------------------------------


@difference(
    "texts",
    "`str()` of an exception is the name of the status",
    "the same name, then `: ` and a sentence; the sentence alone is its attribute `sentence`",
    "an error should say what was being done, to what, and what to try",
    [("_", "a.send_notif('nobody', b'')")],
)
def _(step):
    if not (raised(step.theirs) and raised(step.ours)) or step.theirs[1] != step.ours[1]:
        return False
    return not step.theirs[1].startswith("nixl") or step.ours[2].startswith(step.theirs[2] + ": ")


@difference(
    "enumerations",
    "classes of their own, which compare only with numbers and with themselves, and may be made of "
    "any number",
    "`enum.IntEnum`: members are numbers, in order, and other numbers are a `ValueError`",
    "they are what Python programs know; printing and pickling stay the same",
    [("_", "nb.nixl_mem_t(9)")],
)
def _(step):
    made = r"(nb\.(nixl_mem_t|nixl_thread_sync_t)|api\.nixl_thread_sync_t)\("
    if re.match(made, step.expression) or "nb.DRAM_SEG ==" in step.expression:
        return True
    given = re.search(r"(config\(|, |=)nb\.(NIXL_THREAD_SYNC_RW|DRAM_SEG)\b", step.expression)
    return bool(given) and raised(step.theirs, "TypeError") and gave(step.ours)


@difference(
    "class paths",
    "classes belong to `nixl_cu12._bindings`, and have Python's plain `repr()`",
    "only the classes that are pickled do; the others belong to `nixl._bindings`; `repr()` of a "
    "list says how long it is",
    "one package serves both CUDA versions",
    [("_", "nb.nixlRemoteDList.__module__")],
)
def _(step):
    if "get_serialized_descs(nb.DRAM_SEG)" in step.expression:
        return True
    return "__module__" in step.expression or "repr(" in step.expression


# --- what is taken where upstream refuses -------------------------------------------------------


@difference(
    "arrays are memory",
    "an array is a table of descriptors or nothing: `None`, or an exception",
    "arrays and lists of arrays are memory as well, as tensors are, where they are no table",
    "programs have their data in them; a table always comes with a `mem_type`",
    [("_", "a.get_reg_descs(np.zeros(3))")],
)
def _(step):
    return (
        "np." in step.expression
        and calls(step, "get_xfer_descs", "get_reg_descs", "register_memory", "prep_xfer_dlist",
                  "query_memory")
        and (step.theirs == ("gave", None) or raised(step.theirs))
    )  # fmt: skip


@difference(
    "tuples without meta information",
    "`register_memory()` raises `TypeError` for tuples of 3 members",
    "takes them, with empty meta information; `get_reg_descs()` gives `None` as upstream's",
    "only some backends read meta information",
    [("_", "a.register_memory([(A, 64, 0)], 'DRAM')")],
)
def _(step):
    return calls(step, "register_memory") and raised(step.theirs, "TypeError")


@difference(
    "registration lists in transfers",
    "`initialize_xfer()` raises `TypeError` for a registration list",
    "takes it, and then splits ranges so that only the sums of bytes must be equal",
    "whole files are written from many tensors",
    [REGISTER, LIST, ("_", "a.initialize_xfer('WRITE', d, a.get_reg_descs("
                           "[(A+1024, 128, 0, '')], 'DRAM'), 'a')")],
)  # fmt: skip
def _(step):
    return calls(step, "initialize_xfer") and raised(step.theirs, "TypeError") and (
        re.search(r"RegDList|get_reg_descs|\br[ab]?\d*\b", step.expression)
    )


@difference(
    "indices",
    "lists, tuples, ranges, sets, generators and arrays; integers of 64 bits and floats are cut to "
    "32 bits",
    "everything that can be iterated; what does not fit into 32 bits is `nixlInvalidParamError`",
    "a cut index is another descriptor",
    [REGISTER, ("s", "a.prep_xfer_dlist('', [(A, 64, 0)], 'DRAM')"),
     ("t", "a.prep_xfer_dlist('a', [(A+64, 64, 0)], 'DRAM')"),
     ("_", "a.make_prepped_xfer('READ', s, iter([0]), t, np.array([2**32]))")],
)  # fmt: skip
def _(step):
    return calls(step, "make_prepped_xfer") and raised(step.theirs, "RuntimeError") and (
        gave(step.ours) or raised(step.ours, "nixlInvalidParamError")
    )


@difference(
    "numbers of descriptors",
    "numbers with a fraction are refused, yet `numpy.float32` is cut",
    "integers alone, of any width, and booleans",
    "a cut address is another one",
    [("_", "a.get_xfer_descs([(np.float32(2.5), 1, 0)], 'DRAM')")],
)
def _(step):
    return "float32" in step.expression and raised(step.ours, "RuntimeError")


@difference(
    "arguments by name",
    "some constructors take positions only",
    "names as well",
    "there was no reason to refuse them",
    [("_", "nb.nixlRegDList(nb.DRAM_SEG, descs=np.zeros((1, 3), np.int64))")],
)
def _(step):
    return "nixlRegDList(" in step.expression and "descs=" in step.expression and raised(
        step.theirs, "TypeError"
    )


@difference(
    "send_notif(backend=...)",
    "always raises `TypeError`",
    "sends through that backend",
    "it is what the argument is for",
    [REGISTER, ("_", "a.send_notif('nobody', b'x', 'UCX')")],
)
def _(step):
    return calls(step, "send_notif") and raised(step.theirs, "TypeError")


@difference(
    "more arguments",
    "`TypeError`",
    "`transfer()`, `make_prepped_xfer()`, `initialize_xfer()` and what is below them take a "
    "`timeout`; `create_backend()` takes None for its options",
    "deadlines; the rest is convenience",
    [("_", "a.create_backend('NO', None)")],
)
def _(step):
    if not raised(step.theirs, "TypeError") or raised(step.ours, "TypeError"):
        return False
    if calls(step, "create_backend"):
        return "None" in step.expression
    native = calls(step, "createXferReq", "makeXferReq", "postXferReq")
    return native or "positional arguments but" in step.theirs[2]


# --- better answers -----------------------------------------------------------------------------


@difference(
    "ranges inside of other ranges",
    "a range that was registered hides parts of a larger one around it: `nixlNotFoundError`",
    "the larger one is found",
    "the memory is registered",
    [("r", "a.register_memory([(A, K, 0, ''), (A+128, 64, 0, '')], 'DRAM')"),
     ("_", "type(a.prep_xfer_dlist('', [(A+160, 256, 0)], 'DRAM'))")],
)  # fmt: skip
def _(step):
    return (
        calls(step, "prep_xfer_dlist", "initialize_xfer", "check_remote_metadata",
              "make_prepped_xfer")
        and (raised(step.theirs, "nixlNotFoundError") or step.theirs == ("gave", False))
        and (gave(step.ours) or raised(step.ours, "nixlInvalidParamError"))
        and overlapping(step.before)
    )  # fmt: skip


def overlapping(lines):
    """Whether more than one range was registered in some memory of the program."""
    text = " ".join(e for _, e in lines if re.search("register_memory|partial", e))
    return text.count("(A") + text.count("(B") > 1


@difference(
    "one's own name in check_remote_metadata()",
    "true once anything was registered, also when it is no more; with descriptors always false",
    "true while something is registered; with descriptors true when they are covered",
    "it says whether a transfer to oneself can be made",
    [REGISTER, LIST, ("_", "a.check_remote_metadata('a', d)")],
)
def _(step):
    return calls(step, "check_remote_metadata", "checkRemoteMD") and re.search(
        r"\((agent=)?b?'a'", step.expression
    )


@difference(
    "connecting to oneself",
    "`make_connection()` with one's own name is `nixlNotFoundError` at first, and in an agent that "
    "has been used `nixlInvalidParamError`",
    "always the former",
    "there is nothing to connect",
    None,
)
def _(step):
    return calls(step, "make_connection", "makeConnection") and raised(
        step.theirs, "nixlInvalidParamError"
    )


@difference(
    "a handle of another agent",
    "`query_xfer_backend()` of an agent that lacks the backend raises `StopIteration`",
    "names the backend",
    "every other call with such a handle acts on the agent it belongs to",
    [REGISTER, LIST, TARGET, COPY, ("_", "n.query_xfer_backend(h)")],
)
def _(step):
    return calls(step, "query_xfer_backend") and raised(step.theirs, "StopIteration")


@difference(
    "copies of handles",
    "`copy.copy()` gives a second owner, which releases the handle as well",
    "`TypeError`, as pickling has it",
    "a handle in use must not be released",
    [REGISTER, LIST, TARGET, COPY, ("_", "copy.copy(h).release()")],
    dies=True,
)
def _(step):
    return "copy.copy(h" in step.expression


@difference(
    "names in check_remote_xfer_done()",
    "a name as `bytes` never matches; a message that is empty is found, and stays",
    "`bytes` and `str` name the same peer; what is found is taken",
    "`add_remote_agent()` gives names as `bytes`",
    [("_", "setattr(a, 'notifs', {'p': [b'x']})"), ("_", "a.check_remote_xfer_done(b'p', b'x')")],
)
def _(step):
    return bool(re.search(r"check_remote_xfer_done\((b'|'\w+', b'')", step.expression))


@difference(
    "ports",
    "a number that is no port is tried in the background, and only logged",
    "`nixlInvalidParamError`",
    "it can be said at once",
    [("_", "a.send_local_metadata('127.0.0.1', 70000)")],
)
def _(step):
    return raised(step.ours, "nixlInvalidParamError") and "65535" in step.ours[2]


@difference(
    "estimate_xfer_cost()",
    "says `UNKNOWN`, always",
    "says `ANALYTICAL_BACKEND` when the backend gave an estimate",
    "it is what the third value is for",
    [REGISTER, LIST, TARGET, COPY, ("_", "a.estimate_xfer_cost(h)")],
)
def _(step):
    return calls(step, "estimate_xfer_cost", "estimateXferCost") and gave(step.theirs)


@difference(
    "memory views",
    "`nixlBackendError` where UCX has no device",
    "`nixlNotSupportedError` with a sentence, always",
    "they are not there yet",
    [REGISTER, LIST, ("_", "a.prep_mem_view(d)")],
)
def _(step):
    return calls(step, "prep_mem_view") and raised(step.ours, "nixlNotSupportedError")


@difference(
    "options of plugins",
    "`get_plugin_params()` has 3 options of UCX",
    "the same ones, and those that upstream's takes without listing them",
    "what is not listed is not found",
    [("_", "a.get_plugin_params('UCX')")],
)
def _(step):
    if not re.search(r"get_?[pP]lugin_?[pP]arams", step.expression):
        return False
    return gave(step.theirs) and gave(step.ours) and all(
        item in str(step.ours) for item in re.findall(r"\('\w+', '\w*'\)", str(step.theirs))
    )


@difference(
    "metadata",
    "a format of its own",
    "another one, with a check sum and generations; agents of the two implementations cannot meet",
    "stale and cut metadata must be told apart",
    [REGISTER, ("_", "a.get_agent_metadata()")],
)
def _(step):
    return bool(re.match(r"a\.get_(partial_)?agent_metadata\(", step.expression))


@difference(
    "two mistakes in one call",
    "descriptors of which nothing can be made are noticed last",
    "when they are looked at, so the other mistake may not be the one that is reported",
    "the sentence says what is wrong with them; either is a mistake",
    [("_", "a.query_memory([(1, 2)], 'NO', 'DRAM')")],
)
def _(step):
    return (
        calls(step, "register_memory", "query_memory", "prep_xfer_dlist")
        and raised(step.theirs, "KeyError", "ValueError", "TypeError")
        and raised(step.ours, "TypeError")
    )


@difference(
    "num_threads",
    "is not looked at",
    "must be an integer: `TypeError` when the agent is made",
    "it would only fail later, inside of a backend",
    [("_", "api.nixl_agent('x', api.nixl_agent_config(num_threads=1.5, backends=[]))")],
)
def _(step):
    return "num_threads=" in step.expression and raised(step.ours, "TypeError")


@difference(
    "lists made with a size",
    "have arbitrary content",
    "have zeros",
    "arbitrary content is of no use",
    [("_", "nb.nixlXferDList(nb.DRAM_SEG, 5)")],
)
def _(step):
    return bool(re.search(r"DList\([^(]*, (descs=)?5\)", step.expression))


@difference(
    "lists have a length",
    "`len()` of a list raises `TypeError`, and a `for` loop over it does not end",
    "both work; an empty list is true all the same; compared with an array, it is a sequence",
    "it is a list",
    [("_", "len(nb.nixlXferDList(nb.DRAM_SEG, [(1, 2, 3)]))")],
)
def _(step):
    with_array = re.search(r"[=!]= np\.zeros", step.expression)
    return calls(step, "len") or "has no len()" in str(step.theirs) or bool(with_array)


@difference(
    "numbers in settings",
    "booleans of NumPy are numbers",
    "`TypeError` for a port or a delay",
    "Python's own integers refuse them as well",
    None
    if NUMPY_BOOLEANS_ARE_INTEGERS
    else [("_", "nb.nixlAgentConfig(True, True, np.bool_(True))")],
)
def _(step):
    return "np.bool_" in step.expression and gave(step.theirs) and raised(step.ours, "TypeError")


@difference(
    "settings beyond upstream's",
    "`nixl_agent_config()` raises `TypeError` for `enable_listen`, `backend_params`, `use_etcd`",
    "takes them, by name",
    "documents about NIXL use them",
    [("_", "api.nixl_agent_config(enable_listen=False, backend_params={}, use_etcd=None).port")],
)
def _(step):
    return "unexpected keyword argument" in str(step.theirs) and gave(step.ours)


# --- what brings upstream down ------------------------------------------------------------------

RAW = "api.nixl_agent"


difference(
    "released handles",
    "the process crashes, or the answer is arbitrary",
    "`nixlInvalidParamError`",
    "a mistake must not end the process",
    [REGISTER, LIST, TARGET, COPY, ("_", "a.release_xfer_handle(h)"),
     ("_", f"{RAW}.transfer(a, h)")],
    dies=True,
)(never)  # fmt: skip

@difference(
    "memory that was deregistered under a transfer",
    "the next post says that it is done, or crashes when the transfer is one to oneself",
    "`nixlNotFoundError`",
    "the memory may belong to something else by then",
    [REGISTER, LIST, TARGET, COPY, ("_", "a.transfer(h)"), ("_", "a.deregister_memory(r)"),
     ("_", f"{RAW}.transfer(a, h)")],
    dies=True,
)  # fmt: skip
def _(step):
    return (
        calls(step, "transfer", "make_prepped_xfer")
        and any("deregister_memory" in expression for _, expression in step.before)
        and raised(step.ours, "nixlNotFoundError", "nixlBackendError")
        and gave(step.theirs)
    )


difference(
    "a range twice in one deregistration",
    "is freed twice: the process crashes",
    "is counted twice",
    "registering it twice is allowed",
    [("r", "a.register_memory([(A, 64, 0, ''), (A, 64, 0, '')], 'DRAM')"),
     ("_", f"{RAW}.deregister_memory(a, r)")],
    dies=True,
)(never)  # fmt: skip

difference(
    "old pickle protocols",
    "protocols 0 and 1 abort the process",
    "all protocols work",
    "a mistake must not end the process",
    [("x", "nb.nixlXferDList(nb.DRAM_SEG, [(1, 2, 3)])"),
     ("_", "pickle.loads(pickle.dumps(x, 0))")],
    dies=True,
)(never)  # fmt: skip

difference(
    "names that are no UTF-8",
    "reading such an item of a remote list crashes; such a sender's messages are lost",
    "they come as `str` with surrogates, and can be given back",
    "names may be any bytes",
    [("x", "nb.nixlRemoteDList(nb.DRAM_SEG, [(1, 2, 3, b'\\xff')])")],
    dies=True,
)(never)

difference(
    "an index past the end of a list",
    "reads what lies there",
    "`IndexError`",
    "a mistake must not go unnoticed",
    [("x", "nb.nixlXferDList(nb.DRAM_SEG)"), ("_", "a.get_remote_descs(x)[0]"),
     ("_", f"{RAW}.get_remote_descs(a, x)")],
    dies=True,
)(never)  # fmt: skip


# --- use of the table ---------------------------------------------------------------------------


def allowed(lines, i, theirs, ours):
    """The row that explains why line `i` differs, or None."""
    if i >= len(lines):
        return None
    step = Step(lines[i][1], theirs, ours, lines[:i])
    for row in DIFFERENCES:
        if row.matches(step):
            return row
    return None


def first_difference(lines, theirs, ours):
    """Compares two lists of results: (position, row), (position, None) for a difference that the
    table does not have, or None. Texts of exceptions alone do not count."""
    for i, (there, here) in enumerate(zip(theirs, ours)):
        if there == here:
            continue
        row = allowed(lines, i, there, here)
        if row is None or row.name != "texts":
            return i, row
    return None


HEAD = """# Where this differs from upstream

Programs written for upstream's wheel, version 1.5.1, run on this one. `dev/differential` runs
thousands of random programs in both and compares what they return, raise and leave in memory. What
differs on purpose is here, and only that is let pass. The page is written by
`python tests/differential/differences.py`.

| what | upstream 1.5.1 | here | why |
|---|---|---|---|
"""

TAIL = """
Random programs do not show what follows; other tests of ours do.

| what | upstream 1.5.1 | here |
|---|---|---|
"""

UNSHOWN = [
    ("the end of a process", "dies of SIGSEGV once it made a UCX backend", "ends cleanly"),
    (
        "notifications of a transfer",
        "leave when the sender asks for the transfer's state",
        "leave without being asked",
    ),
    (
        "peers that are gone",
        "`check_remote_metadata()` stays true",
        "false after a call raised `nixlRemoteDisconnectError`, until the peer is added again",
    ),
    (
        "metadata without a listener of one's own",
        "`fetch_remote_metadata()` never completes",
        "the answer is read from the connection that asked",
    ),
    (
        "`nixl.logging`",
        "after `import nixl` it is Python's own module; `logging.raiseExceptions` is changed for "
        "the whole process; lines of level DEBUG are lost",
        "the helper module, everywhere; nothing else is changed; they come through",
    ),
    (
        "malformed `NIXL_ETCD_ENDPOINTS`",
        "is refused when it is empty; else etcd is not found, later",
        "`RuntimeError` when the agent is made, which says what is wrong with it",
    ),
    (
        "telemetry of a transfer in flight",
        "arbitrary figures",
        "figures so far, zeros at first",
    ),
]


def page():
    """docs/differences.md."""
    rows = "".join(f"| {r.name} | {r.theirs} | {r.ours} | {r.why} |\n" for r in DIFFERENCES)
    more = "".join(f"| {what} | {theirs} | {ours} |\n" for what, theirs, ours in UNSHOWN)
    return HEAD + rows + TAIL + more


if __name__ == "__main__":
    print(page(), end="")
