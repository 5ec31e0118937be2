"""vLLM's NIXL connector between a prefill and a decode engine, on CPU memory, without a model.

Run by the Python that has vLLM and a nixl package. Everything of vLLM is the installed one,
unchanged: EngineCore, Scheduler, executor, NixlPullConnector and NixlPushConnector with their
side channel. kv_worker.py stands for the model. This program is the router between the two.

    python run.py [pull] [push] [wait] [death]     all four when none is named
"""

import json
import os
import random
import shutil
import socket
import sys
import time
import uuid
from multiprocessing.connection import Listener
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pair  # noqa: E402

HERE = Path(__file__).resolve().parent
DEADLINE_S = 240       # for one scenario
LAYERS = 16
BLOCK = 32             # tokens in a page
PAGE = 65536           # bytes of a page: 2 * 32 tokens * 8 heads * 64 * 2 bytes
BLOCKS = 768           # of a pool: 12,288 pages
REQUESTS = 12
ROUNDS = 3
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
    "intermediate_size": 1024, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}


class Wrong(Exception):
    """A scenario did not do what it has to."""


def check(right, what):
    if not right:
        raise Wrong(what)


def quiet_port():
    """A free TCP port below those that the system gives to connections; it is used much later."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


class Engine:
    """A started engine.py."""

    def __init__(self, role, folder, connector, deadline, **settings):
        self.name = "%s-%s" % (role, uuid.uuid4().hex[:6])
        self.engine_id = "engine-" + self.name
        self.port = settings.pop("port", None) or quiet_port()
        self.deadline = deadline
        self.ready_s = None
        worker = {"kv_cache_bytes": BLOCKS * LAYERS * PAGE}
        worker.update(settings.pop("worker", {}))
        setup = dict({
            "socket": str(folder / (self.name + ".sock")), "engine_id": self.engine_id,
            "role": "kv_producer" if role == "prefill" else "kv_consumer",
            "connector": connector, "model": str(folder / "model"), "lease_s": 30,
            "failure_policy": "fail", "max_num_seqs": 16, "worker": worker}, **settings)
        self.listener = Listener(setup["socket"])
        self.listener._listener._socket.settimeout(120)
        environment = dict(
            os.environ, VLLM_TARGET_DEVICE="cpu", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1",
            VLLM_NIXL_SIDE_CHANNEL_HOST="127.0.0.1", VLLM_NIXL_SIDE_CHANNEL_PORT=str(self.port))
        self.process = pair.Process(
            self.name, [sys.executable, str(HERE / "engine.py"), json.dumps(setup)], folder,
            environment)
        self.line = None

    def receive(self):
        """What the engine says next."""
        if not self.line.poll(max(0.0, self.deadline - time.monotonic())):
            raise Wrong("%s says nothing more" % self.name)
        return self.line.recv()

    def wait_ready(self):
        try:
            self.line = self.listener.accept()
        except socket.timeout:
            raise Wrong("%s did not connect in 120 s" % self.name)
        finally:
            self.listener.close()
        what, _, self.ready_s = self.receive()
        check(what == "ready", "%s is not ready" % self.name)

    def add(self, name, tokens, max_tokens, transfer):
        self.line.send(("add", name, tokens, max_tokens, transfer))

    def results(self, count):
        """The next `count` requests that finish, by name."""
        done = {}
        while len(done) < count:
            what, finished = self.receive()
            check(what == "finished", "%s says %s" % (self.name, what))
            done.update((one["name"], one) for one in finished)
        return done

    def report(self, settled=True):
        """The engine's own figures; with `settled`, once it holds no request and no block."""
        while True:
            self.line.send(("report",))
            what, report = self.receive()
            check(what == "report", "%s says %s" % (self.name, what))
            if not settled or not (report["requests_left"] or report["blocks_held"]):
                return report
            check(time.monotonic() < self.deadline, "%s still holds %d requests, %d blocks" % (
                self.name, report["requests_left"], report["blocks_held"]))
            time.sleep(0.05)

    def stop(self):
        """Lets it shut down; its exit status."""
        self.line.send(("stop",))
        check(self.receive() == ("stopped",), "%s does not stop" % self.name)
        return self.process.wait(self.deadline)


class Pair:
    """A prefill and a decode engine, and the router's part between them."""

    def __init__(self, folder, complaints, connector, prefill=None, decode=None):
        self.deadline = time.monotonic() + DEADLINE_S
        self.folder, self.complaints, self.connector = folder, complaints, connector
        self.engines = []
        self.prefill = self.decode = None
        self.settings = {"prefill": prefill or {}, "decode": decode or {}}

    def start(self, role, **settings):
        engine = Engine(role, self.folder, self.connector, self.deadline, **settings)
        self.engines.append(engine)
        return engine

    def __enter__(self):
        try:
            self.prefill = self.start("prefill", **self.settings["prefill"])
            worker = self.settings["decode"].get("worker", {})
            if worker.get("kill") == "prefill":
                worker["kill"] = self.prefill.process.popen.pid
            self.decode = self.start("decode", **self.settings["decode"])
            for engine in self.engines:
                engine.wait_ready()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, error, trace):
        left = [engine.name for engine in self.engines if engine.process.end()]
        if kind is not None:
            for engine in self.engines:
                print("--- the end of what %s said:" % engine.name)
                print("\n".join(engine.process.tail()))
        elif left:
            self.complaints.append("processes left behind by " + ", ".join(left))

    def prefill_all(self, prompts):
        for name, tokens in prompts.items():
            self.prefill.add(name, tokens, 1, {"do_remote_decode": True,
                                               "do_remote_prefill": False})
        done = self.prefill.results(len(prompts))
        for name, one in done.items():
            check(one["transfer"] and one["transfer"]["do_remote_prefill"],
                  "prefill of %s gave no kv_transfer_params: %s" % (name, one))
        return done

    def where_prefill_is(self, name):
        """What a router that knows the prefill engine can tell before the prompt was computed."""
        return {"do_remote_prefill": True, "do_remote_decode": False,
                "remote_engine_id": self.prefill.engine_id, "remote_request_id": name,
                "remote_host": "127.0.0.1", "remote_port": self.prefill.port, "tp_size": 1}

    def stop(self):
        """Both end by themselves; their exit statuses, by role."""
        statuses = {"decode": self.decode.stop(), "prefill": self.prefill.stop()}
        for role, status in statuses.items():
            if status != 0:
                self.complaints.append("%s ended with status %s" % (role, status))
        return statuses


def prompts(count, seed):
    """`count` prompts of about 1024 tokens, named as vLLM's front end does."""
    chance = random.Random(seed)
    return {"cmpl-%d-%d-%08x" % (seed, i, chance.getrandbits(32)):
            [chance.randrange(1, 32000) for _ in range(1024 + chance.randrange(-16, 16))]
            for i in range(count)}


def expected_bytes(many):
    """What decode has to compare: the pages of all tokens but the last, which it computes."""
    return sum((len(tokens) - 1 + BLOCK - 1) // BLOCK for tokens in many.values()) * LAYERS * PAGE


def check_answers(prefilled, decoded):
    """The first token that decode made is the one that prefill had made."""
    for name, one in decoded.items():
        check(one["why"] == "length", "%s ended with %s" % (name, one["why"]))
        check(one["tokens"][0] == prefilled[name]["tokens"][0], "%s went on with another token"
              % name)


def check_reports(of_decode, of_prefill, expected, moved_bytes, transfers, mover):
    """Bytes, blocks and the transfers' telemetry, after everything was done."""
    counts, raw = of_decode["counts"], mover["raw"]
    check(counts["pages_wrong"] == 0, "%d pages differ" % counts["pages_wrong"])
    check(counts["bytes_compared"] == expected, "%d bytes compared instead of %d" % (
        counts["bytes_compared"], expected))
    for one in (of_decode, of_prefill):
        for kind in ("num_failed_transfers", "num_failed_notifications", "num_failed_handshakes",
                     "num_kv_expired_reqs", "num_notifications_after_expiry"):
            check(not one["raw"][kind], "%s: %s" % (kind, one["raw"][kind]))
    check(len(raw["bytes_transferred"]) == transfers, "telemetry of %d transfers instead of %d" % (
        len(raw["bytes_transferred"]), transfers))
    check(sum(raw["bytes_transferred"]) == moved_bytes, "telemetry counts %d bytes, not %d" % (
        sum(raw["bytes_transferred"]), moved_bytes))
    for whole, post in zip(raw["transfer_duration"], raw["post_duration"]):
        check(0 < post <= whole < DEADLINE_S, "post took %g s of %g s" % (post, whole))
    for pieces, size in zip(raw["num_descriptors"], raw["bytes_transferred"]):
        check(LAYERS <= pieces <= size // PAGE, "%d descriptors for %d bytes" % (pieces, size))


def figures(raw):
    """What vLLM logs of transfers, of some of them."""
    def percentile(values, part):
        return sorted(values)[min(len(values) - 1, int(part * len(values)))]

    whole, post = raw["transfer_duration"], raw["post_duration"]
    return "transfer ms avg %.1f p90 %.1f, post ms avg %.2f p90 %.2f, descriptors avg %.1f" % (
        1e3 * sum(whole) / len(whole), 1e3 * percentile(whole, 0.9),
        1e3 * sum(post) / len(post), 1e3 * percentile(post, 0.9),
        sum(raw["num_descriptors"]) / len(whole))


def milliseconds(results):
    return " ".join("%.0f" % (1000 * one["first_token_s"]) for one in results.values())


def exchange(folder, complaints, connector, mover):
    """Rounds of requests: from the second on, the pools' free blocks are out of order.

    The last round is for the clock: nobody looks at its bytes, which takes as long as moving them.
    """
    expected = moved_bytes = 0
    with Pair(folder, complaints, connector) as both:
        for turn in range(ROUNDS):
            many = prompts(REQUESTS, turn)
            if turn == ROUNDS - 1:
                both.decode.line.send(("compare", False))
            else:
                expected += expected_bytes(many)
            moved_bytes += expected_bytes(many)
            if connector == "NixlPushConnector" and turn:
                # The other order that a router may choose: decode waits before prefill began.
                for name, tokens in many.items():
                    both.decode.add(name, tokens, 3, both.where_prefill_is(name))
                prefilled = both.prefill_all(many)
            else:
                prefilled = both.prefill_all(many)
                for name, tokens in many.items():
                    both.decode.add(name, tokens, 3, prefilled[name]["transfer"])
            decoded = both.decode.results(len(many))
            check_answers(prefilled, decoded)
            print("  round %d, ms until the first token: %s" % (turn + 1, milliseconds(decoded)))
            of_decode, of_prefill = both.decode.report(), both.prefill.report()
        moved = of_decode if mover == "decode" else of_prefill
        check_reports(of_decode, of_prefill, expected, moved_bytes, ROUNDS * REQUESTS, moved)
        last = {name: values[-REQUESTS:] for name, values in moved["raw"].items()}
        print("  vLLM's figures of the last round:", figures(last))
        print("  instead of a model: prefill wrote for %.2f s, decode compared for %.2f s" % (
            of_prefill["counts"]["write_s"], of_decode["counts"]["compare_s"]))
        print("  engines ready after %.1f and %.1f s" % (both.prefill.ready_s,
                                                         both.decode.ready_s))
        print("  exit statuses:", both.stop())
    return expected


def pull(folder, complaints):
    """Decode reads from prefill."""
    return exchange(folder, complaints, "NixlPullConnector", "decode")


def push(folder, complaints):
    """Prefill writes to decode, which registered its blocks by a notification."""
    return exchange(folder, complaints, "NixlPushConnector", "prefill")


def wait(folder, complaints):
    """Requests wait in decode's queue for longer than their lease; heartbeats keep their blocks."""
    with Pair(folder, complaints, "NixlPullConnector", prefill={"lease_s": 6},
              decode={"lease_s": 6, "max_num_seqs": 2, "worker": {"step_s": 0.05}}) as both:
        busy, many = prompts(2, 7), prompts(4, 8)
        for name, tokens in busy.items():
            both.decode.add(name, tokens, 200, None)  # ten seconds of its own work
        prefilled = both.prefill_all(many)
        for name, tokens in many.items():
            both.decode.add(name, tokens, 2, prefilled[name]["transfer"])
        decoded = both.decode.results(len(busy) + len(many))
        check_answers(prefilled, {name: decoded[name] for name in many})
        waited = min(decoded[name]["first_token_s"] for name in many)
        check(waited > 6, "no request waited for longer than its lease: %.1f s" % waited)
        of_decode, of_prefill = both.decode.report(), both.prefill.report()
        expected = expected_bytes(many)
        check_reports(of_decode, of_prefill, expected, expected, len(many), of_decode)
        renewals = of_prefill["counts"]["lease_renewals"]
        check(renewals >= len(many), "%d leases renewed" % renewals)
        print("  waited %.1f s for a lease of 6 s, renewed %d times; exit statuses: %s" % (
            waited, renewals, both.stop()))
    return expected


def death(folder, complaints):
    """Prefill is killed between two reads; decode says so, and goes on with the next prefill."""
    killer = {"worker": {"kill": "prefill", "kill_after": 3}}
    with Pair(folder, complaints, "NixlPullConnector", decode=killer) as both:
        first, own, later = prompts(REQUESTS, 3), prompts(2, 4), prompts(4, 5)
        prefilled = both.prefill_all(first)
        begun = time.monotonic()
        for name, tokens in first.items():
            both.decode.add(name, tokens, 3, prefilled[name]["transfer"])
        decoded = both.decode.results(len(first))
        took = time.monotonic() - begun
        check(both.prefill.process.wait(both.deadline) == -9, "prefill was not killed")
        good = {name: one for name, one in decoded.items() if one["why"] == "length"}
        check_answers(prefilled, good)
        bad = [one["why"] for one in decoded.values() if one["why"] != "length"]
        check(set(bad) == {"error"}, "requests ended with %s" % sorted(set(bad)))
        of_decode = both.decode.report()
        failures = of_decode["stats"]["Num failed transfers"]
        check(failures >= len(bad), "%d requests, but %d transfers failed" % (len(bad), failures))
        print("  %d requests came through, %d failed, all known after %.2f s" % (
            len(good), len(bad), took))

        for name, tokens in own.items():
            both.decode.add(name, tokens, 3, None)
        for name, one in both.decode.results(len(own)).items():
            check(one["why"] == "length", "%s, decode's own, ended with %s" % (name, one["why"]))
        both.prefill = both.start("prefill", port=both.prefill.port)
        both.prefill.wait_ready()
        prefilled = both.prefill_all(later)
        for name, tokens in later.items():
            both.decode.add(name, tokens, 3, prefilled[name]["transfer"])
        check_answers(prefilled, both.decode.results(len(later)))
        of_decode, _ = both.decode.report(), both.prefill.report()
        counts = of_decode["counts"]
        check(counts["pages_wrong"] == 0, "%d pages differ" % counts["pages_wrong"])
        least = expected_bytes({name: first[name] for name in good}) + expected_bytes(later)
        check(counts["bytes_compared"] == least, "%d bytes compared instead of %d" % (
            counts["bytes_compared"], least))
        print("  went on with another prefill; exit statuses:", both.stop())
    return least


def main(names):
    scenarios = {"pull": pull, "push": push, "wait": wait, "death": death}
    complaints, compared = [], 0
    with pair.run_folder() as folder:
        model = Path(folder) / "model"
        shutil.rmtree(str(model), ignore_errors=True)
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(MODEL))
        for name in names or scenarios:
            begun = time.monotonic()
            print("%s: %s" % (name, scenarios[name].__doc__), flush=True)
            wrong = []
            try:
                compared += scenarios[name](Path(folder), wrong)
            except (Wrong, EOFError, OSError) as error:
                wrong.append(str(error) or type(error).__name__)
            complaints += ["%s: %s" % (name, what) for what in wrong]
            print("  %.1f s" % (time.monotonic() - begun), flush=True)
    pair.finish("vLLM: %s; %d bytes compared" % (
        ", ".join(names or scenarios), compared), complaints)


if __name__ == "__main__":
    main(sys.argv[1:])
