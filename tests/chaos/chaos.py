"""Agents under load that are killed, stopped, restarted and cut off; whatever they say must be true.

    python tests/chaos/chaos.py [--cycles N] [--seed S] [--agents N] [--tls tcp] [--hosts]

A cycle is a burst of transfers among all agents and one disturbance in the middle of it. Checked:

- every byte of a transfer that was DONE, and that a transfer ends within its deadline;
- undisturbed transfers are DONE, and their messages arrive, none twice and none of a failed one;
- memory that was given back is not written to any more;
- descriptors, threads and memory of an agent that nothing was done to come back to where they were.

The seed decides what is done; how the machine interleaves it is another matter. --hosts: each agent
in a network namespace of its own (root), and links are cut and slowed as well.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent / "support", HERE.parent / "system", HERE):
    sys.path.insert(0, str(folder))

import build_tree  # noqa: E402

build_tree.use()
for folder in (HERE.parent / "system", HERE):
    build_tree.prepend(os.environ, "PYTHONPATH", folder)

import crew  # noqa: E402
from processes import Peer, end_all  # noqa: E402

GRACE = 15  # seconds beyond a deadline, for a machine that does other things as well
TIMEOUT = 6.0
ALLOWED = {  # how a disturbed transfer may end
    "DONE", "nixlRemoteDisconnectError", "nixlNotFoundError", "nixlCancelledError",
    "nixlTimeoutError", "nixlStalledError", "nixlBackendError", "nixlShutDownError",
    "nixlInvalidParamError", "nixlNotAllowedError", "nixlPartialError", "nixlNotQuiescedError",
}  # fmt: skip


class Broken(AssertionError):
    """A promise was not kept."""


class Member:
    """An agent of the group, and the process that has it now."""

    def __init__(self, index):
        self.index = index
        self.name = f"agent{index}"
        self.peer = self.blob = self.base = None
        self.busy_lanes = set()
        self.life = 0  # changes with every agent that takes the name
        self.ready_at = 0


class Links:
    """Network namespaces on one bridge; cut() and slow() are what happens to cables."""

    def __init__(self, count):
        self.tag = f"nxc{os.getpid()}"
        self.names = [f"{self.tag}h{i}" for i in range(count)]
        self.hub = f"{self.tag}b"
        try:
            self.lay()
        except BaseException:
            self.remove()
            raise

    def lay(self):
        self.run("ip", "netns", "add", self.hub)
        self.inside(self.hub, "ip", "link", "add", "name", "br", "type", "bridge")
        self.inside(self.hub, "ip", "link", "set", "dev", "br", "up")
        for i, name in enumerate(self.names):
            self.run("ip", "netns", "add", name)
            self.run("ip", "link", "add", "up0", "netns", name, "type", "veth", "peer", "name",
                     f"p{i}", "netns", self.hub)  # fmt: skip
            self.inside(self.hub, "ip", "link", "set", f"p{i}", "master", "br", "up")
            self.inside(name, "ip", "addr", "add", f"10.231.9.{i + 1}/24", "dev", "up0")
            self.inside(name, "ip", "link", "set", "lo", "up")
            self.inside(name, "ip", "link", "set", "up0", "up")

    @staticmethod
    def run(*words):
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        if done.returncode != 0:
            raise OSError(f"{' '.join(words)}: {done.stdout.decode().strip()}")

    def inside(self, namespace, *words):
        self.run("ip", "netns", "exec", namespace, *words)

    def environment(self, index):
        return {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "up0"}, ["ip", "netns", "exec",
                                                             self.names[index]]

    def cut(self, index):
        self.inside(self.hub, "ip", "link", "set", f"p{index}", "down")

    def join(self, index):
        self.inside(self.hub, "ip", "link", "set", f"p{index}", "up")

    def slow(self, index):
        """10 Mbit/s, and so a delay of what waits: tens of milliseconds."""
        for namespace, device in ((self.names[index], "up0"), (self.hub, f"p{index}")):
            self.inside(namespace, "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate",
                        "10mbit", "burst", "16kb", "latency", "80ms")  # fmt: skip

    def hurry(self, index):
        for namespace, device in ((self.names[index], "up0"), (self.hub, f"p{index}")):
            self.inside(namespace, "tc", "qdisc", "del", "dev", device, "root")

    def remove(self):
        for name in [*self.names, self.hub]:
            with contextlib.suppress(OSError):
                self.run("ip", "netns", "del", name)


class Chaos:
    def __init__(self, cycles, seed, agents=4, tls=None, hosts=False, progress=None):
        self.cycles, self.random = cycles, random.Random(seed)
        self.agents, self.tls = agents, tls
        self.links = Links(agents) if hosts else None
        self.progress = progress
        self.members = [Member(i) for i in range(agents)]
        self.retired = []
        self.seeds = itertools.count(1)
        self.report = collections.Counter()
        self.outcomes = collections.defaultdict(collections.Counter)
        self.sent = {}  # message -> (receiver, its life, must arrive)
        self.failed = {}
        self.unsettled = collections.Counter()  # pair of agents: until which cycle
        self.history = collections.deque(maxlen=6)
        self.arrived = collections.Counter()
        self.samples = []
        self.kinds = ["none", "none", "kill", "stop", "stop_long", "reuse_memory", "start_anew",
                      "forget", "cut", "cancel"]  # fmt: skip
        if os.geteuid() != 0 or not shutil.which("ss"):
            self.kinds.remove("cut")  # the kernel cuts only for root
        if hosts:
            self.kinds += ["unplug", "slow"]

    # ---- processes ---------------------------------------------------------------------------

    def start(self, member):
        env, prefix = {}, []
        if self.links:
            env, prefix = self.links.environment(member.index)
        elif self.tls:
            env = {"UCX_TLS": self.tls}
        # What waits for a dead host shall end within a test's time.
        member.peer = Peer(member.name, env={**env, "NIXL_LOG_LEVEL": os.environ.get("NIXL_LOG_LEVEL", "ERROR")}, prefix=prefix)
        member.blob = None
        member.peer.begin(crew.begin, member.name, self.agents)

    def adopt(self, member):
        member.blob, member.base = member.peer.result()
        member.life += 1
        member.busy_lanes.clear()

    def meet(self):
        """Everybody gets everybody's metadata, which costs little where it is known."""
        for member in self.members:
            blobs = [other.blob for other in self.members if other is not member]
            member.peer.begin(crew.load, blobs)
        for member in self.members:
            for refusal in member.peer.result():
                raise Broken(f"{member.name}: metadata was refused: {refusal}")

    # ---- a cycle -----------------------------------------------------------------------------

    def orders_of(self, cycle, sender):
        orders = []
        others = [m for m in self.members if m is not sender]
        lanes = [(m, lane) for m in others for lane in range(crew.LANES)
                 if (m.index, lane) not in sender.busy_lanes]  # fmt: skip
        self.random.shuffle(lanes)
        for other, lane in lanes[: self.random.randint(1, 5)]:
            size = self.random.choice([1, 8, 4096, 65536, crew.SLOT])
            orders.append(crew.Order(
                sender.index, other.index, self.random.choice(["WRITE", "READ"]), lane, size,
                min(size, self.random.choice([1, 1, 7, 64])), self.random.random() < 0.5,
                next(self.seeds), f"{cycle}.{sender.index}.{other.index}.{lane}".encode(),
                TIMEOUT, other.base, False,
            ))  # fmt: skip
        return orders

    def cycle(self, number):
        kind = self.random.choice(self.kinds)
        # The first one is left alone but for being stopped: its resources are looked at.
        victim = self.members[self.random.randrange(1, self.agents)]
        self.report[kind] += 1
        self.history.append(f"{kind} of agent{victim.index}")
        after = self.random.random() * 0.02
        orders = {m.index: self.orders_of(number, m) for m in self.members}
        if kind == "cancel":
            orders[victim.index] = [order._replace(cancel=True) for order in orders[victim.index]]
        outbox = collections.defaultdict(list)
        for order in itertools.chain(*orders.values()):
            if order.op == "READ":
                outbox[order.to].append((order.sender, order.lane, order.seed, order.size))
        for member in self.members:
            member.peer.begin(crew.lay_out, outbox[member.index])
        for member in self.members:
            member.peer.result()

        disturbance = None
        if kind in ("reuse_memory", "start_anew", "cut"):
            disturbance = (getattr(crew, kind),)
        elif kind == "forget":
            disturbance = (crew.forget, self.random.choice(
                [m.name for m in self.members if m is not victim]))  # fmt: skip
        for member in self.members:
            mine = disturbance if member is victim else None
            member.peer.begin(crew.burst, orders[member.index], mine, after)
        self.disturb(kind, victim, after)

        results, ended = {}, [victim] if kind == "kill" else []
        for member in self.members:
            if member in ended:
                continue
            try:
                outcomes, told, unquiet = member.peer.result(TIMEOUT + 60)
            except AssertionError as error:
                # UCX 1.22 over TCP: a peer is lost while its request is being answered.
                if "ucp_request.inl:356  Fatal: unexpected error" not in str(error):
                    raise
                self.report["UCX ended the process (ucp_request.inl:356)"] += 1
                member.peer.kill()
                self.retired.append(member.peer)
                ended.append(member)
                continue
            if "error" in told:
                raise Broken(f"{kind} of {member.name}: {told['error']}")
            member.busy_lanes = set(map(tuple, unquiet))
            results[member.index] = list(zip(orders[member.index], outcomes))
            if member is victim and kind == "reuse_memory":
                member.blob, landed, asked = told["value"]
                self.report["memory given back, all peers quiet"] += asked
                if landed and any(number <= self.unsettled[frozenset((member.index, other.index))]
                                  for other in self.members if other is not member):
                    self.report["landed bytes of who had just connected"] += 1
                elif landed:
                    raise Broken(f"{landed} landed in memory that {member.name} gave back")
            if member is victim and kind == "start_anew":
                member.blob, member.base = told["value"]
                member.life += 1
                member.busy_lanes.clear()
        self.check(number, kind, {victim, *ended}, ended, results)
        for member in ended:
            self.start(member)
        for member in ended:
            self.adopt(member)
        self.collect()
        self.meet()

    def disturb(self, kind, victim, after):
        if kind not in ("kill", "stop", "stop_long", "unplug", "slow"):
            return
        time.sleep(after)
        if kind == "kill":
            victim.peer.kill()
            self.retired.append(victim.peer)
        elif kind in ("stop", "stop_long"):
            victim.peer.stop()
            time.sleep(TIMEOUT + 1 if kind == "stop_long" and self.report[kind] % 8 == 1
                       else self.random.random() * 0.2)  # fmt: skip
            victim.peer.go_on()
        elif kind == "unplug":
            self.links.cut(victim.index)
            time.sleep(self.random.random() * 0.5)
            self.links.join(victim.index)
        else:
            self.links.slow(victim.index)
            time.sleep(0.3)
            self.links.hurry(victim.index)

    def check(self, number, kind, disturbed, ended, results):
        names = " and ".join(member.name for member in disturbed)
        if kind not in ("none", "stop", "slow"):
            for one, other in itertools.product(disturbed, self.members):
                self.unsettled[frozenset((one.index, other.index))] = number + 6
        lasting = kind in ("none", "stop", "unplug", "slow")  # nothing may be lost by it
        expected = collections.defaultdict(list)
        for index, outcomes in results.items():
            for order, (how, seconds) in outcomes:
                self.outcomes[kind][how] += 1
                self.report["transfers"] += 1
                what = f"{order.op} of agent{index} with agent{order.to} in a cycle of '{kind}'"
                if how.startswith(("HANG", "WRONG BYTES")):
                    raise Broken(f"{what}: {how} after {seconds:.1f} s")
                if how == "READ OF REUSED MEMORY" and (
                    number <= self.unsettled[frozenset((index, order.to))]
                ):
                    # The owner had not heard yet of who reads: docs/guide/failures.md, left open.
                    self.report["reads of reused memory by who had just connected"] += 1
                    self.sent[order.message] = (order.to, self.members[order.to].life, False)
                    continue
                if how not in ALLOWED:
                    raise Broken(f"{what}: {how}")
                if seconds > order.timeout + GRACE:
                    raise Broken(f"{what}: {how} only after {seconds:.1f} s")
                # One side may learn late that the other one closed a connection.
                late = (how == "nixlRemoteDisconnectError"
                        and number <= self.unsettled[frozenset((index, order.to))])  # fmt: skip
                touched = kind not in ("none", "stop") and any(
                    member.index in (index, order.to) for member in disturbed)  # fmt: skip
                self.report["learnt late of a closed connection"] += late and not touched
                if how != "DONE" and not (touched or late):
                    raise Broken(f"{what} ({names} were disturbed): {how}")
                target = self.members[order.to]
                if how == "DONE":
                    settled = number > self.unsettled[frozenset((index, order.to))]
                    must = settled and (lasting or not touched)
                    self.sent[order.message] = (order.to, target.life, must)
                    # What a victim's memory holds is known only where it stayed the same.
                    if order.op == "WRITE" and not (
                        target in ended
                        or target in disturbed and kind in ("reuse_memory", "start_anew")
                    ):
                        expected[order.to].append((index, order.lane, order.seed, order.size))
                elif kind == "start_anew" and self.members[index] in disturbed:
                    self.sent[order.message] = (order.to, target.life, False)  # nobody could look
                elif kind not in ("stop_long", "unplug", "slow"):
                    self.sent[order.message] = (order.to, target.life, None)
                    self.failed[order.message] = f"{what}: {how}"
        for index, slots in expected.items():
            wrong = self.members[index].peer(crew.verify, slots)
            self.report["writes whose bytes were compared"] += len(slots)
            if wrong:
                raise Broken(f"{len(wrong)} writes into agent{index} were DONE and their bytes are "
                             f"not there (writer, lane, seed, size): {wrong[:4]}")  # fmt: skip

    def collect(self):
        """Messages: all that must come, none twice, none of a transfer that failed."""
        due = {message for message, (_, _, must) in self.sent.items() if must}
        deadline = time.monotonic() + 30
        while True:
            for member in self.members:
                for sender, got in member.peer(crew.messages).items():
                    for message in got:
                        self.arrived[message] += 1
                        self.report["messages"] += 1
                        if self.arrived[message] > 1:
                            raise Broken(f"message {message} of {sender} came twice")
                        if self.sent.get(message, (0, 0, True))[2] is None:
                            raise Broken(f"message {message} came, and {self.failed[message]}")
            missing = due - set(self.arrived)
            if not missing:
                break
            if time.monotonic() > deadline:
                raise Broken(f"messages did not come: {sorted(missing)[:4]}")
            time.sleep(0.005)
        if len(self.sent) > 4096:
            self.sent.clear()
            self.arrived.clear()

    # ---- the whole ---------------------------------------------------------------------------

    def sample(self):
        """Resources of the first agent, once all is quiet."""
        time.sleep(0.3)
        self.samples.append(self.members[0].peer(crew.resources))

    def compare_samples(self):
        if len(self.samples) < 2:
            return
        # The first cycles open connections and caches; the last samples are taken after a pause.
        first, last = self.samples[0], min(self.samples[-3:])
        for what, before, after, more in (
            ("descriptors", first[0], last[0], 4 * self.agents),
            ("threads", first[1], last[1], 0),
            ("resident bytes", first[2], last[2], 48 << 20),
        ):
            self.report[f"{what} at first"], self.report[f"{what} at last"] = before, after
            if after > before + more:
                raise Broken(f"agent0 had {before} {what} at first and has {after} at last: "
                             f"{self.samples}")  # fmt: skip

    def run(self):
        began = time.monotonic()
        number = 0
        try:
            for member in self.members:
                self.start(member)
            for member in self.members:
                self.adopt(member)
            self.meet()
            for number in range(self.cycles):
                self.cycle(number)
                if number == min(20, self.cycles // 2) or number >= self.cycles - 3:
                    self.sample()
                if self.progress:
                    self.progress(number + 1)
            self.compare_samples()
        except BaseException as error:
            error.args = (f"cycle {number}, the last ones {', '.join(self.history)}: "
                          f"{'; '.join(map(str, error.args))}",)
            raise
        finally:
            try:
                for member in self.members:
                    if member.peer and member.peer.process.poll() is None:
                        with contextlib.suppress(ProcessLookupError):
                            member.peer.process.send_signal(signal.SIGCONT)
                end_all([*self.retired, *(m.peer for m in self.members if m.peer)])
            finally:
                if self.links:
                    self.links.remove()
        self.report["seconds"] = round(time.monotonic() - began)
        return {"report": dict(self.report),
                "outcomes": {kind: dict(how) for kind, how in self.outcomes.items()}}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--tls", help="UCX_TLS of the agents; without: what UCX chooses")
    parser.add_argument("--hosts", action="store_true", help="a network namespace for each agent")
    options = parser.parse_args()

    def progress(done):
        if sys.stderr.isatty() or done % 50 == 0:
            print(f"\r{done}/{options.cycles}", end="" if sys.stderr.isatty() else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip

    result = Chaos(progress=progress, **vars(options)).run()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
