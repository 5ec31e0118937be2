"""Random programs: lines (name, expression) for world.py, mostly sensible and sometimes not."""

from hypothesis import strategies as st

pick = st.sampled_from
KINDS = ["DRAM"] * 12 + ["VRAM", "FILE", "BLOCK", "OBJ", "cpu", "cuda", "dram", ""]
SEGMENTS = ["nb.DRAM_SEG"] * 4 + ["nb.VRAM_SEG", "nb.BLK_SEG", "nb.OBJ_SEG", "nb.FILE_SEG"]
ODD_NUMBERS = [
    "-1",
    "2**64-1",
    "2**64",
    "1.5",
    "'7'",
    "None",
    "True",
    "np.int64(64)",
    "np.uint64(2**63)",
    "np.int8(-1)",
    "np.float64(2)",
    "np.bool_(True)",
    "[]",
]
METAS = ["''", "b''", "'meta'", "b'\\xff\\0'", "bytearray(b'm')", "'\\u00e9'", "None", "5", "[]"]
MESSAGES = ["b'm:%d'", "'t:%d'", "bytearray(b'a:%d')", "b'nul\\0%d'", "'\\u00e9%d'"]
JUNK = [
    "None",
    "5",
    "-1",
    "1.5",
    "'text'",
    "b'bytes'",
    "[]",
    "{}",
    "()",
    "[1]",
    "['UCX']",
    "object()",
    "nb.DRAM_SEG",
    "np.zeros(3)",
    "np.zeros((2, 3), np.int64)",
    "nb.nixlXferDList(nb.DRAM_SEG, [(A, 64, 0)])",
    "nb.nixlRegDList(nb.DRAM_SEG, [(A, 64, 0, '')])",
    "nb.nixlRemoteDList(nb.DRAM_SEG, [(A, 64, 0, 'b')])",
    "[(A, 64, 0)]",
    "[(A, 64, 0, '')]",
    "lambda: 0",
]


def seldom(draw, times=8):
    """True once in `times`."""
    return draw(st.integers(0, times - 1)) == times - 1


def number(draw, usual, times=40):
    return draw(pick(ODD_NUMBERS)) if seldom(draw, times) else usual


def row(draw, members=3, base=None, odd=40):
    """A descriptor as text, inside the memory at `base` most of the time."""
    base = base or draw(pick("AB"))
    at = 64 * draw(st.integers(0, 63))
    length = draw(pick([64] * 6 + [128, 256, 1024, 0]))
    address = f"{base}+{at}" if at else base
    parts = [number(draw, address, odd), number(draw, str(length), odd)]
    parts.append(number(draw, "1" if seldom(draw, 30) else "0", odd))
    if members == 4:
        parts.append(draw(pick(METAS if seldom(draw, odd // 3) else METAS[:2])))
    if seldom(draw, odd):
        parts = parts[: draw(st.integers(1, 4))] + ["9"] * draw(st.integers(0, 2))
    return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"


def rows(draw, members=3, base=None, least=1, most=6, odd=40):
    count = draw(st.integers(least, most))
    return ", ".join(row(draw, members, base, odd) for _ in range(count))


def run_of_rows(draw, base, count=None):
    """Equal blocks at a constant distance, as text of a list."""
    count = count or draw(st.integers(1, 8))
    length = draw(pick([64, 64, 64, 128]))
    step = draw(pick([length] * 4 + [2 * length, length + 64, -length]))
    first = draw(st.integers(0, 16)) * 64 + (1024 if step < 0 else 0)
    return f"[({base}+{first}+i*{step}, {length}, 0) for i in range({count})]"


def table(draw, text):
    """The rows of a list as an array, of a sensible type most of the time."""
    dtype = draw(pick(["np.uint64"] * 5 + ["np.int64"] * 3 + ["'>i8'", "np.int32", "float"]))
    if dtype == "np.int32":
        text = text.replace("A", "8").replace("B", "8")
    made = f"np.array({text}, {dtype})"
    if seldom(draw, 12):
        made = draw(
            pick(
                [
                    f"np.asfortranarray({made})",
                    f"{made}[:, ::-1]",
                    f"{made}[:0]",
                    f"{made}[:, :2]",
                    f"{made}[::2]",
                    f"{made}[0]",
                    f"np.ascontiguousarray({made}[::-1])",
                    f"{made}.reshape(1, *{made}.shape)",
                ]
            )
        )
    return made


def for_remote(text):
    """Without names that are no UTF-8: upstream crashes when it reads them back."""
    return text.replace("b'\\xff\\0'", "b'm'")


def descs(draw, members=3, base=None, odd=40):
    """What a program may give as descriptors, as text."""
    form = draw(pick(["tuples"] * 5 + ["run"] * 3 + ["table"] * 3 + ["odd"]))
    if form == "tuples":
        return f"[{rows(draw, members, base, odd=odd)}]"
    if form == "run" and members == 3:
        return run_of_rows(draw, base or draw(pick("AB")))
    if form == "odd" and not seldom(draw, 2):
        inner = rows(draw, members, base)
        return draw(
            pick(
                [
                    "[]",
                    "()",
                    f"({inner},)",
                    f"(x for x in [{inner}])",
                    f"[list(x) for x in [{inner}]]",
                    f"[{inner}, 5]",
                    f"[{inner}, [A, 64, 0]]",
                    f"{{{inner}: 1}}",
                    f"iter([{inner}])",
                    *JUNK,
                ]
            )
        )
    return table(draw, f"[{rows(draw, 3, base, odd=10**6)}]")


def kind(draw, most="DRAM"):
    """`, KIND` as text, or nothing."""
    if seldom(draw, 25):
        return draw(pick(["", ", None", ", nb.DRAM_SEG", ", 5", ", b'DRAM'"]))
    return f", {draw(pick(KINDS)) if seldom(draw, 6) else most!r}"


class Names:
    """Gives out names, and remembers them by what they stand for."""

    def __init__(self, draw):
        self.draw, self.lines, self.known = draw, [], {}

    def add(self, what, expression):
        name = f"{what}{len(self.lines)}"
        self.known.setdefault(what, []).append(name)
        self.lines.append((name, expression))
        return name

    def do(self, expression):
        self.lines.append(("_", expression))

    def any(self, what):
        return self.draw(pick(self.known[what]))

    def has(self, what):
        return bool(self.known.get(what))


# --- lists alone --------------------------------------------------------------------------------


@st.composite
def of_lists(draw):
    """The three classes of lists, changed, compared, copied and pickled."""
    names = Names(draw)
    for _ in range(draw(st.integers(1, 3))):
        cls, members = draw(pick([("Xfer", 3), ("Xfer", 3), ("Reg", 4), ("Remote", 4)]))
        segment = draw(pick(SEGMENTS))
        if seldom(draw, 4):
            given = "" if seldom(draw, 2) else f", {descs(draw, members)}"
        elif cls == "Remote":
            given = f", [{row(draw, odd=10**6)[:-1]}, 'peer')]"
        else:
            given = f", [{rows(draw, members)}]"
        names.add(cls, f"nb.nixl{cls}DList({segment}{given})")
    for _ in range(draw(st.integers(1, 8))):
        cls = draw(pick(sorted(names.known)))
        x = names.any(cls)
        members = 3 if cls == "Xfer" else 4
        position = draw(pick(["0", "1", "2", "5", "-1", "1.0", "None", "'a'", "np.int64(0)"]))
        one = for_remote(row(draw, members, odd=6))
        other = names.any(draw(pick(sorted(names.known))))
        operation = draw(
            pick(
                [
                    f"{x}.addDesc({one})",
                    f"{x}.append({one})",
                    f"{x}.append({for_remote(row(draw, 4, odd=6))})",
                    f"{x}.append([A, 64, 0, ''])",
                    f"{x}.remDesc({position})",
                    f"at({x}, {position})",
                    f"{x}.index({one})",
                    f"{x}.index(at({x}, 0))",
                    f"{x}.index(at({x}, 0)[:3])",
                    f"{x} == {other}",
                    f"{x} != {other}",
                    f"{x} == {draw(pick(JUNK))}",
                    f"hash({x})",
                    f"bool({x})",
                    f"{x}.trim()",
                    f"{x}.descCount()",
                    f"{x}.isEmpty()",
                    f"{x}.getType()",
                    f"{x}.clear()",
                    f"copy.copy({x})",
                    f"copy.deepcopy({x})",
                    f"pickle.loads(pickle.dumps({x}, {draw(st.integers(2, 5))}))",
                    f"pickle.dumps({x}, {draw(st.integers(2, 5))})",
                    f"a.deserialize_descs(a.get_serialized_descs({x}))",
                    f"a.get_serialized_descs({x})",
                    f"type({x})({x}.getType(), {x})",
                    f"{x}.__setitem__(min({x}.descCount() - 1, 0), {one})",
                    f"a.get_xfer_descs({x})",
                    f"a.get_reg_descs({x})",
                    f"a.get_remote_descs({x})",
                    f"{x}.descCount(1)",
                    f"{x}.addDesc()",
                    f"{x}.nothing",
                    f"{x}.__class__.__name__",
                    f"{x}.__class__.__module__",
                ]
            )
        )
        names.do(operation)
    for found in names.known.values():
        for x in found:
            names.do(x)
    return names.lines


@st.composite
def of_constructors(draw):
    """Lists made of anything at all."""
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        cls, members = draw(pick([("Xfer", 3), ("Reg", 4), ("Remote", 4)]))
        segment = draw(pick(SEGMENTS + ["0", "'DRAM'", "None"]))
        given = draw(
            pick(
                [
                    "",
                    f", {descs(draw, members, odd=8)}",
                    f", descs={descs(draw, members, odd=8)}",
                    f", {draw(pick(JUNK))}",
                ]
            )
        )
        named = "type=" if seldom(draw, 6) else ""
        if named and given and "=" not in given[:8]:
            given = ", descs=" + given[2:]
        if cls == "Remote":
            given = for_remote(given)
        lines.append(("x", f"nb.nixl{cls}DList({named}{segment}{given})"))
        size = draw(pick(["0", "3", "-1", "1.0", "None", "'2'"]))
        word = draw(pick(["", "init_size="]))
        lines.append(("_", f"nb.nixl{cls}DList({segment}, {word}{size}).descCount()"))
    return lines


@st.composite
def of_converters(draw):
    """get_xfer_descs, get_reg_descs and get_remote_descs with anything at all."""
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        convert, members = draw(pick([("xfer", 3), ("reg", 4), ("remote", 4)]))
        members = draw(pick([members] * 6 + [3, 4]))
        given = draw(pick(JUNK)) if seldom(draw, 6) else descs(draw, members, odd=12)
        if convert == "remote":
            given = for_remote(given)
        word = "descs=" if seldom(draw, 8) else ""
        mem = kind(draw)
        if word and mem:
            mem = ", mem_type=" + mem[2:]
        lines.append(("x", f"a.get_{convert}_descs({word}{given}{mem})"))
        if seldom(draw, 3):
            lines.append(("_", "a.deserialize_descs(a.get_serialized_descs(x))"))
    return lines


# --- settings -----------------------------------------------------------------------------------

FIELDS = [
    "useProgThread",
    "useListenThread",
    "listenPort",
    "syncMode",
    "captureTelemetry",
    "pthrDelay",
    "lthrDelay",
    "etcdWatchTimeout",
    "nothing",
]
VALUES = [
    "True",
    "False",
    "0",
    "1",
    "8888",
    "65535",
    "65536",
    "-1",
    "2**64",
    "1.5",
    "None",
    "'x'",
    "nb.NIXL_THREAD_SYNC_RW",
    "nb.DRAM_SEG",
    "api.nixl_thread_sync_t.NIXL_THREAD_SYNC_RW",
    "datetime.timedelta(seconds=2)",
    "[]",
    "np.bool_(True)",
    "np.int64(7)",
]
NAMES = [
    "'x'",
    "b'x'",
    "''",
    "b''",
    "None",
    "5",
    "'a b'",
    "'\\u00e9'",
    "'NIXL_INIT_AGENT'",
    "bytearray(b'x')",
]


@st.composite
def of_settings(draw):
    """Configurations of both layers, and agents without a backend that are made with them."""
    lines = [("c", "nb.nixlAgentConfig()"), ("w", "api.nixl_agent_config()")]
    words = "enable_prog_thread enable_listen_thread listen_port capture_telemetry num_threads"
    fields = "backends enable_pthread enable_listen port capture_telemetry num_threads sync_mode"
    for _ in range(draw(st.integers(2, 8))):
        value, field = draw(pick(VALUES)), draw(pick(FIELDS))
        given = ", ".join(draw(pick(VALUES)) for _ in range(draw(st.integers(0, 9))))
        right = ["True", "False", "77", "nb.NIXL_THREAD_SYNC_RW", "1", "2", "3", "True"]
        safe = draw(pick(["False", "0", "None", "''"]))  # no listener is started
        expression = draw(
            pick(
                [
                    f"c.{field}",
                    f"setattr(c, {field!r}, {value})",
                    f"nb.nixlAgentConfig({given})",
                    f"nb.nixlAgentConfig({', '.join(right[: draw(st.integers(0, 8))])}).{field}",
                    f"nb.nixlAgentConfig({field}={value})",
                    f"type(api.nixl_agent_config({draw(pick(words.split()))}={value}))",
                    f"api.nixl_agent_config(sync_mode={value}).sync_mode",
                    f"api.nixl_agent_config(backends={draw(pick(JUNK))}).backends is None",
                    f"getattr(w, {draw(pick(fields.split()))!r})",
                    f"api.nixl_agent_config(True, {safe}, {value}, False, 0, []).port",
                    f"api.nixl_agent({draw(pick(NAMES))}, api.nixl_agent_config(backends=[])).name",
                    f"nb.nixlAgent({draw(pick(NAMES))}, nb.nixlAgentConfig()).__class__.__name__",
                    f"nb.nixlAgent('x', {value})",
                    "api.nixl_agent('x', api.nixl_agent_config("
                    f"True, False, {value}, backends=[])).name",
                    f"api.nixl_agent('x', api.nixl_agent_config({value}, backends=[])).name",
                    "api.nixl_agent('x', api.nixl_agent_config("
                    f"capture_telemetry={value}, backends=[]))",
                    f"api.nixl_agent('x', api.nixl_agent_config(num_threads={value}, backends=[]))",
                    f"nb.nixl_mem_t({value})",
                    f"nb.nixl_thread_sync_t({value})",
                    f"nb.nixlXferTelemetry({given if seldom(draw) else ''})",
                    f"setattr(nb.nixlXferTelemetry(), 'totalBytes', {value})",
                    f"nb.nixlXferTelemetry().{draw(pick(['startTime', 'xferDuration', 'x']))}",
                    f"repr({draw(pick(SEGMENTS))})",
                    f"int({draw(pick(SEGMENTS))})",
                    f"nb.DRAM_SEG == {value}",
                    f"list(api.nixl_thread_sync_t)[{draw(pick('0123'))}].name",
                    f"api.nixl_thread_sync_t({value})",
                ]
            )
        )
        lines.append(("_", expression))
    return lines


# --- agents -------------------------------------------------------------------------------------

INDEX_FORMS = [
    "{}",
    "{}",
    "{}",
    "tuple({})",
    "np.array({})",
    "np.array({}, np.int32)",
    "np.array({}, np.int32)",
    "np.array({}, np.int64)",
    "np.array({}, np.uint32)",
    "np.array({}, np.uint8)",
    "np.array({}, np.int16)",
    "np.array({}, np.uint64)",
    "np.repeat(np.array({}, np.int32), 2)[::2]",
    "np.array({}, '>i4')",
    "iter({})",
    "(i for i in {})",
    "list(np.array({}))",
    "[np.int32(i) for i in {}]",
    "dict.fromkeys({})",
]
ODD_INDICES = [
    "[]",
    "[-1]",
    "[8]",
    "[2**31]",
    "[2**40]",
    "[0.0]",
    "['0']",
    "[None]",
    "0",
    "None",
    "'0'",
    "b'0'",
    "np.array([[0]])",
    "np.array(0)",
    "np.array([], np.int32)",
    "np.array([-1])",
    "np.array([7, 100])",
    "[True]",
    "{0}",
    "range(0)",
    "{}",
    "bytearray(b'\\0')",
]


def indices(draw, count):
    """(form, text) of positions below `count`."""
    how = draw(pick(["run", "run", "any", "down", "step"]))
    first = draw(st.integers(0, max(0, count - 1)))
    if how == "run":
        return list(range(first, count))
    if how == "down":
        return list(range(first, -1, -1))
    if how == "step":
        return list(range(first % 2, count, 2))
    return draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8))


def blocks(draw, base):
    """One side of prepared transfers: (text of descriptors, how many blocks)."""
    how = draw(pick(["run", "run", "tuples", "table", "strided", "strided", "mixed"]))
    if how == "strided":
        lines, total = [], 0
        for _ in range(draw(st.integers(1, 3))):
            at, length = draw(st.integers(0, 60)) * 64, draw(pick([64, 64, 64, 128]))
            stride = length + draw(pick([0, 0, 64, 1]))
            count = draw(st.integers(1, 6))
            if seldom(draw, 40):
                wrong = [(0, 64, 1), (63, 64, 2), (64, 0, 1), (64, 64, 0)]
                stride, length, count = draw(pick(wrong))
            lines.append(f"({base}+{at}, {length}, {int(seldom(draw, 40))}, {stride}, {count})")
            total += count
        return table(draw, f"[{', '.join(lines)}]"), max(1, total)
    if how == "run":
        count = draw(st.integers(1, 8))
        return run_of_rows(draw, base, count), count
    if how == "mixed":
        count = draw(st.integers(1, 4))
        return f"{run_of_rows(draw, base, count)} + {run_of_rows(draw, base, count)}", 2 * count
    count = draw(st.integers(1, 6))
    text = ", ".join(f"({base}+{64 * draw(st.integers(0, 63))}, 64, 0)" for _ in range(count))
    text = f"[{text}]"
    return (table(draw, text) if how == "table" else text), count


@st.composite
def of_transfers(draw):
    """Registrations, sides, transfers, messages, in all orders."""
    names = Names(draw)
    message = iter(range(10**6))

    def note(times=2):
        if not seldom(draw, times):
            return "b''"
        text = draw(pick(MESSAGES)) % next(message)
        return draw(pick(["''", "None", "5", "memoryview(b'x')"])) if seldom(draw, 25) else text

    def registration(agent, base):
        what = draw(pick(["all"] * 6 + ["parts", "some"]))
        if what == "all":
            given = f"[({base}, K, 0, '')], 'DRAM'"
        elif what == "parts":
            given = f"[({base}+i*512, 512, 0, '') for i in range(8)], 'DRAM'"
        else:
            given = descs(draw, 4, base) + kind(draw)
        if seldom(draw, 20):
            given += draw(pick([", ['UCX']", ", ['NO']", ", backends=['UCX', 'UCX']", ", []"]))
        names.add("r" + agent, f"{agent}.register_memory({given})")

    loops = draw(st.booleans())
    peer, memory = ("a", "A") if loops else ("b", "B")
    registration("a", "A")
    if not loops:
        registration("b", "B")
        if not seldom(draw, 12):
            names.add("peer", "a.add_remote_agent(b.get_agent_metadata())")
    who = [repr(peer)] * 8 + ["b'a'" if loops else "b'b'", "'nobody'", "''", "'NIXL_INIT_AGENT'"]
    who += ["None", "5", "b''"]

    def prepare(side):
        base = "A" if side == "local" else memory
        given, count = blocks(draw, base)
        at = draw(pick(["''", "'NIXL_INIT_AGENT'"])) if side == "local" else draw(pick(who))
        more = draw(pick([", []", ", ['UCX']", ", ['NO']", ", None"])) if seldom(draw, 20) else ""
        mem = kind(draw)
        if more and not mem:
            more = ""
        names.add(side, f"a.prep_xfer_dlist({at}, {given}{mem}{more})")
        counts[names.known[side][-1]] = count

    counts = {}
    todos = ["prepare"] * 3 + ["make"] * 6 + ["init"] * 4 + ["post"] * 8 + ["other"] * 8
    for _ in range(draw(st.integers(3, 12))):
        todo = draw(pick(todos))
        sided = names.has("local") and names.has("remote")
        if todo == "prepare" or (todo == "make" and not sided):
            prepare("local")
            prepare("remote")
        elif todo == "make":
            sides = [names.any("local"), names.any("remote")]
            if seldom(draw, 20):
                sides.reverse()
            n = min(counts[s] for s in sides)
            chosen = [indices(draw, n) for _ in sides]
            least = min(map(len, chosen))
            if not seldom(draw, 20):
                chosen = [c[:least] for c in chosen]
            given = [draw(pick(INDEX_FORMS)).format(c) for c in chosen]
            if seldom(draw, 12):
                given[draw(st.integers(0, 1))] = draw(pick(ODD_INDICES))
            op = draw(pick(["'WRITE'"] * 5 + ["'READ'"] * 5 + ["'read'", "None", "5"]))
            more = draw(pick(["", "", ", skip_desc_merge=True", ", backends=['UCX']"]))
            names.add(
                "h",
                f"a.make_prepped_xfer({op}, {sides[0]}, {given[0]}, {sides[1]}, {given[1]}, "
                f"{note()}{more})",
            )
        elif todo == "init" or (todo == "post" and not names.has("h")):
            op = draw(pick(["'WRITE'"] * 5 + ["'READ'"] * 5 + ["'write'"]))
            n = draw(st.integers(1, 5))
            if seldom(draw, 6):
                here, there = f"[{rows(draw, base='A')}]", f"[{rows(draw, base=memory)}]"
            else:
                length = draw(pick([64, 64, 128]))
                here, there = (
                    "["
                    + ", ".join(
                        f"({base}+{64 * draw(st.integers(0, 63))}, {length}, 0)" for _ in range(n)
                    )
                    + "]"
                    for base in ("A", memory)
                )
            here, there = (f"a.get_xfer_descs({x}, 'DRAM')" for x in (here, there))
            if seldom(draw, 25):
                there = draw(pick(JUNK))
            names.add("h", f"a.initialize_xfer({op}, {here}, {there}, {draw(pick(who))}, {note()})")
        elif todo == "post":
            h = names.any("h")
            names.do(f"a.transfer({h}{', ' + note(1) if seldom(draw, 4) else ''})")
            if seldom(draw, 2):
                names.do(f"a.get_xfer_telemetry({h})")
        else:
            self_or_peer = draw(pick(who))
            h = names.any("h") if names.has("h") else draw(pick(JUNK))
            sides = names.known.get("local", []) + names.known.get("remote", []) or ["None"]
            ra = names.any("ra")
            tag = draw(pick(["b'm'", "b''", "b't:'", "b'1'", "b'zz'", "'m'"]))
            agent = draw(pick(["a", "a", peer]))
            todo = [
                f"a.check_xfer_state({h})",
                f"a.get_xfer_telemetry({h})",
                f"a.query_xfer_backend({h})",
                f"a.estimate_xfer_cost({h})[2].__class__",
                f"a.release_xfer_handle({h})",
                f"a.release_dlist_handle({draw(pick(sides))})",
                f"{h}.release()",
                f"{h}",
                f"repr({h})[:19]",
                f"hash({h}) == hash({h})",
                f"{peer}.get_new_notifs()",
                f"{peer}.update_notifs()",
                f"{peer}.check_remote_xfer_done('a', {tag})",
                f"{peer}.check_remote_xfer_done('a', {tag}, tag_is_prefix=False)",
                f"{agent}.get_new_notifs({draw(pick(['[]', repr(['UCX']), repr(['NO']), '()']))})",
                f"a.send_notif({self_or_peer}, {note(1)})",
                f"a.make_connection({self_or_peer})",
                f"a.check_remote_metadata({self_or_peer})",
                f"a.check_remote_metadata({self_or_peer}, "
                f"a.get_xfer_descs([{rows(draw, base=memory)}], 'DRAM'))",
                f"a.deregister_memory({ra})",
                f"a.register_memory({ra}) is {ra}",
                f"{ra}.trim()",
                f"a.query_memory({ra}, {draw(pick([repr('UCX'), repr('NO'), 'None']))})",
                f"a.remove_remote_agent({self_or_peer})",
            ]
            if not loops:
                todo += [
                    "a.add_remote_agent(b.get_agent_metadata())",
                    "b.add_remote_agent(a.get_agent_metadata())",
                    f"a.add_remote_agent(b.get_partial_agent_metadata({names.any('rb')}, "
                    f"{draw(pick(['True', 'False']))}))",
                    "a.add_remote_agent(b.get_partial_agent_metadata(nb.nixlRegDList(nb.DRAM_SEG), "
                    "True))",
                    f"b.deregister_memory({names.any('rb')})",
                    "b.send_notif('a', b'back')",
                    "a.get_new_notifs()",
                ]
            names.do(draw(pick(todo)))
    names.do(f"{peer}.get_new_notifs()")
    return names.lines


# Every method of an agent with arguments that are right.
METHODS = {
    "get_plugin_mem_types": ["'UCX'"],
    "get_plugin_params": ["'UCX'"],
    "get_backend_mem_types": ["'UCX'"],
    "get_backend_params": ["'UCX'"],
    "create_backend": ["'UCX'", "{}"],
    "get_xfer_descs": ["[(A, 64, 0)]", "'DRAM'"],
    "get_reg_descs": ["[(A, 64, 0, '')]", "'DRAM'"],
    "get_remote_descs": ["[(A, 64, 0, 'b')]", "'DRAM'"],
    "register_memory": ["[(A, 64, 0, '')]", "'DRAM'", "['UCX']"],
    "deregister_memory": ["r", "['UCX']"],
    "query_memory": ["[(A, 64, 0, '')]", "'UCX'", "'DRAM'"],
    "make_connection": ["'a'", "['UCX']"],
    "prep_xfer_dlist": ["'a'", "[(A, 64, 0)]", "'DRAM'", "['UCX']"],
    "make_prepped_xfer": ["'READ'", "s", "[0]", "t", "[0]", "b'm'", "['UCX']", "False"],
    "initialize_xfer": ["'READ'", "d", "d", "'a'", "b'm'", "['UCX']"],
    "transfer": ["h", "b'x'"],
    "check_xfer_state": ["h"],
    "get_xfer_telemetry": ["h"],
    "query_xfer_backend": ["h"],
    "release_xfer_handle": ["h"],
    "release_dlist_handle": ["s"],
    "get_new_notifs": ["['UCX']"],
    "update_notifs": ["['UCX']"],
    "check_remote_xfer_done": ["'a'", "b'x'", "['UCX']", "True"],
    "send_notif": ["'a'", "b'x'"],
    "get_partial_agent_metadata": ["r", "True", "['UCX']"],
    "add_remote_agent": ["b.get_agent_metadata()"],
    "remove_remote_agent": ["'b'"],
    "check_remote_metadata": ["'a'", "d"],
    "send_local_metadata": ["''", "8888"],
    "send_partial_agent_metadata": ["r", "True", "['UCX']", "''", "8888", "''"],
    "fetch_remote_metadata": ["'b'", "''", "8888", "''"],
    "invalidate_local_metadata": ["''", "8888"],
    "get_serialized_descs": ["d"],
    "deserialize_descs": ["pickle.dumps(5)"],
    "get_agent_metadata": [],
    "nothing": [],
}


@st.composite
def of_arguments(draw):
    """Every method with arguments that are wrong, missing or too many."""
    lines = [
        ("r", "a.register_memory([(A, K, 0, '')], 'DRAM')"),
        ("d", "a.get_xfer_descs([(A, 64, 0), (A+64, 64, 0)], 'DRAM')"),
        ("s", "a.prep_xfer_dlist('', d)"),
        ("t", "a.prep_xfer_dlist('a', d)"),
        ("h", "a.initialize_xfer('READ', d, d, 'a')"),
    ]
    for _ in range(draw(st.integers(1, 5))):
        method = draw(pick(sorted(METHODS)))
        given = list(METHODS[method])
        agent = draw(pick("aaan"))
        for _ in range(draw(st.integers(0, 2))):
            change = draw(pick(["junk"] * 4 + ["less", "more"]))
            if change == "junk" and given:
                at = draw(st.integers(0, len(given) - 1))
                junk = draw(pick(JUNK + ["h", "s", "a", "A"]))
                # Upstream does not stop at a list's end when it is given as names of backends.
                if not ("DList" in junk and given[at] == "['UCX']"):
                    given[at] = junk
            elif change == "less" and given:
                given.pop()
            elif change == "more":
                given.append(draw(pick(JUNK)))
        call = f"{agent}.{method}({', '.join(given)})"
        if method in ("get_agent_metadata", "get_partial_agent_metadata"):
            call = f"type({call})"
        lines.append(("_", call))
    return lines


NATIVE = {
    "getPluginParams": ["'UCX'"],
    "getBackendParams": ["a.backends['UCX']"],
    "registerMem": ["g", "[a.backends['UCX']]"],
    "deregisterMem": ["g", "[a.backends['UCX']]"],
    "queryMem": ["g", "a.backends['UCX']"],
    "makeConnection": ["'a'", "[a.backends['UCX']]"],
    "prepXferDlist": ["'a'", "d", "[a.backends['UCX']]"],
    "createXferReq": ["nb.NIXL_READ", "d", "d", "'a'", "b'm'", "[a.backends['UCX']]"],
    "getNotifs": ["{}", "[a.backends['UCX']]"],
    "genNotif": ["'a'", "''", "[a.backends['UCX']]"],
    "getLocalMD": [],
    "getLocalPartialMD": ["g", "False", "[a.backends['UCX']]"],
    "loadRemoteMD": ["b.get_agent_metadata()"],
    "invalidateRemoteMD": ["'b'"],
    "checkRemoteMD": ["'a'", "d"],
    "sendLocalMD": ["''", "0"],
    "invalidateLocalMD": ["''", "0"],
    "fetchRemoteMD": ["'b'", "''", "0", "''"],
    "nothing": [],
}
WORDS = {
    "getPluginParams": ["name"],
    "registerMem": ["descs", "backends"],
    "deregisterMem": ["descs", "backends"],
    "queryMem": ["descs", "backend"],
    "makeConnection": ["remote_agent", "backends"],
    "prepXferDlist": ["agent_name", "descs", "backend"],
    "createXferReq": "operation local_descs remote_descs remote_agent notif_msg backend".split(),
    "getNotifs": ["notif_map", "backends"],
    "genNotif": ["remote_agent", "msg", "backends"],
    "getLocalPartialMD": ["descs", "inc_conn_info", "backends"],
    "loadRemoteMD": ["remote_metadata"],
    "checkRemoteMD": ["agent", "descs"],
    "sendLocalMD": ["ip_addr", "port"],
    "invalidateLocalMD": ["ip_addr", "port"],
    "fetchRemoteMD": ["remote_agent", "ip_addr", "port", "label"],
}
# Numbers stand for pointers there, so only what is no number may be wrong.
NATIVE_JUNK = [x for x in JUNK if x not in ("5", "-1", "[1]", "nb.DRAM_SEG")]


@st.composite
def of_native_arguments(draw):
    """The native agent's methods, by position and by name, with other arguments than theirs."""
    lines = [
        ("g", "nb.nixlRegDList(nb.DRAM_SEG, [(A, K, 0, '')])"),
        ("_", "a.agent.registerMem(g)"),
        ("d", "a.get_xfer_descs([(A, 64, 0), (A+64, 64, 0)], 'DRAM')"),
    ]
    for _ in range(draw(st.integers(1, 5))):
        method = draw(pick(sorted(NATIVE)))
        given = list(NATIVE[method])
        words = WORDS.get(method, [])
        change = draw(pick(["junk"] * 3 + ["less", "more", "none", "words", "words"]))
        if change == "junk" and given:
            given[draw(st.integers(0, len(given) - 1))] = draw(pick(NATIVE_JUNK))
        elif change == "less" and given:
            given = given[: draw(st.integers(0, len(given) - 1))]
        elif change == "more":
            given.append(draw(pick(NATIVE_JUNK)))
        if change == "words" and words:
            by = draw(st.integers(0, len(given) - 1))
            given[by:] = [f"{word}={value}" for word, value in zip(words[by:], given[by:])]
        call = f"a.agent.{method}({', '.join(given)})"
        if method in ("getLocalMD", "getLocalPartialMD", "prepXferDlist", "createXferReq"):
            call = f"type({call})"
        lines.append(("_", call))
    lines.append(("_", "a.agent.deregisterMem(g)"))
    return lines


ALL = {
    "lists": of_lists(),
    "constructors": of_constructors(),
    "converters": of_converters(),
    "settings": of_settings(),
    "transfers": of_transfers(),
    "arguments": of_arguments(),
    "native": of_native_arguments(),
}
