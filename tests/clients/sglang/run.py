"""SGLang's disaggregation over NIXL between a prefill and a decode process, on CPU memory.

Run by the Python that has SGLang and a nixl package. SGLang is the installed one, unchanged: its
bootstrap server, NixlKVManager, NixlKVSender and NixlKVReceiver, its KV pool and its buffers for
metadata. This program stands for the scheduler and the model: it writes pages that depend on the
request, calls the sender and the receiver as SGLang's scheduler does, and compares every byte.

    python run.py [exchange] [death] [hicache]     all three when none is named
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pair  # noqa: E402

DEADLINE_S = 240     # for one scenario
LAYERS = 16          # 32 tensors: keys and values of each
PAGES = 768          # of a pool: 24,576 blocks
PAGE_TOKENS, HEADS, HEAD_SIZE = 16, 8, 64
REQUESTS = 12
REQUEST_PAGES = 48
CHUNK_PAGES = 24     # a prompt goes over in two chunks
ROUNDS = 3
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
    "intermediate_size": 1024, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "head_dim": HEAD_SIZE, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}


# ---- what runs in the roles' processes; SGLang is imported there only ----

class Node:
    """SGLang's KV pool, metadata buffers and KV manager, set up as its scheduler does."""

    def __init__(self, folder, mode, port):
        import torch
        from sglang.srt.disaggregation.nixl import conn
        from sglang.srt.disaggregation.utils import DisaggregationMode, MetadataBuffers
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
        from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
        from sglang.srt.server_args import ServerArgs

        self.conn = conn
        self.address = "127.0.0.1:%d" % port
        settings = ServerArgs(
            model_path=str(Path(folder) / "model"), device="cpu", load_format="dummy",
            skip_tokenizer_init=True, page_size=PAGE_TOKENS, host="127.0.0.1",
            disaggregation_mode=mode, disaggregation_transfer_backend="nixl",
            disaggregation_bootstrap_port=port)
        publish(settings, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
        get_parallel().override_permanently(pp_group=None)
        if mode == "prefill":
            self.server = conn.NixlKVBootstrapServer("127.0.0.1", port)
        # SGLang's pools have one page more, for padding.
        self.pool = MHATokenToKVPool(
            (PAGES - 1) * PAGE_TOKENS, PAGE_TOKENS, torch.bfloat16, HEADS, HEAD_SIZE, LAYERS,
            "cpu", enable_memory_saver=False)
        self.buffers = MetadataBuffers(REQUESTS, 512, torch.bfloat16, 0)
        pointers, lengths, items = self.pool.get_contiguous_buf_infos()
        self.tensors = [tensor.view(torch.uint8).reshape(PAGES, -1).numpy()
                        for tensor in self.pool.k_buffer + self.pool.v_buffer]
        assert [tensor.ctypes.data for tensor in self.tensors] == list(pointers)
        arguments = conn.KVArgs()
        arguments.engine_rank = arguments.pp_rank = arguments.system_dp_rank = 0
        arguments.prefill_start_layer, arguments.prefill_end_layer = 0, LAYERS
        arguments.kv_data_ptrs, arguments.kv_data_lens = list(pointers), list(lengths)
        arguments.kv_item_lens = list(items)
        arguments.kv_data_mem_kinds = ["DRAM"] * len(items)
        arguments.kv_layer_ids = list(range(LAYERS)) * 2
        arguments.kv_cache_dtype_str = "bfloat16"
        aux = self.buffers.get_buf_infos()
        arguments.aux_data_ptrs, arguments.aux_data_lens, arguments.aux_item_lens = aux
        arguments.state_types, arguments.state_data_ptrs = [], []
        arguments.state_data_lens, arguments.state_item_lens = [], []
        arguments.state_layer_ids, arguments.state_dim_per_tensor = [], []
        arguments.rust_http_port = None
        arguments.kv_head_num = arguments.total_kv_head_num = HEADS
        arguments.page_size, arguments.ib_device, arguments.gpu_id = PAGE_TOKENS, None, 0
        self.manager = conn.NixlKVManager(
            arguments, getattr(DisaggregationMode, mode.upper()), settings, False)

    def end(self):
        """Lets the process end by itself: prefill's thread stops at a message that is not SGLang's.

        A server of SGLang has no use for that, a signal ends it.
        """
        import zmq

        stranger = zmq.Context.instance().socket(zmq.PUSH)
        stranger.connect("tcp://%s:%d" % (self.manager.local_ip, self.manager.rank_port))
        stranger.send(b"the end")

    def fill(self, room, pages):
        """Writes the pages of request `room`, and the buffers for its metadata."""
        for i, tensor in enumerate(self.tensors):
            for position, page in enumerate(pages):
                tensor[page] = content(tensor.shape[1], room, i, position)

    def compare(self, room, pages):
        """(bytes compared, pages that differ)"""
        wrong = 0
        for i, tensor in enumerate(self.tensors):
            for position, page in enumerate(pages):
                wrong += not (tensor[page] == content(tensor.shape[1], room, i, position)).all()
        return len(self.tensors) * len(pages) * self.tensors[0].shape[1], wrong


_BASE = {}


def content(size, room, tensor, position):
    """What a page has to hold: random bytes, shifted by a number of its own."""
    if size not in _BASE:
        _BASE[size] = pair.pattern(2 * size, 1)
    start = (room * 7919 + tensor * 997 + position * 13) % size
    return _BASE[size][start:start + size]


def pages_of(turn, i, seed):
    """The pages of request i of a round; from the second round on without order."""
    import numpy as np

    pages = np.arange(1, PAGES)
    if turn:
        np.random.default_rng(seed + turn).shuffle(pages)
    return pages[i * REQUEST_PAGES:(i + 1) * REQUEST_PAGES].astype(np.int32)


def room_of(turn, i):
    return 1000 * (turn + 1) + i


def wait_for(objects, states, KVPoll):
    """Polls all senders or receivers until each has one of the states; their states."""
    while True:
        polled = [one.poll() for one in objects]
        if all(state in states or state == KVPoll.Failed for state in polled):
            return polled
        time.sleep(0.001)


def token_of(room):
    return 17 + room


def prefill(folder, rounds, first_is_lost=False):
    """Writes pages and sends them; with `first_is_lost` the first round's decode dies meanwhile."""
    port = int(pair.get(folder, "port"))
    node = Node(folder, "prefill", port)
    KVPoll = node.conn.KVPoll
    pair.put(folder, "prefill-up", b"1")
    metrics, lost = [], 0
    for turn in range(rounds):
        senders = [node.conn.NixlKVSender(node.manager, node.address, room_of(turn, i))
                   for i in range(REQUESTS)]
        chosen = [pages_of(turn, i, 100) for i in range(REQUESTS)]
        for i, pages in enumerate(chosen):
            node.fill(room_of(turn, i), pages)
            node.buffers.output_ids[i][0] = token_of(room_of(turn, i))
            node.buffers.bootstrap_room[i, 0] = room_of(turn, i)
        states = wait_for(senders, [KVPoll.WaitingForInput], KVPoll)
        assert KVPoll.Failed not in states, "bootstrap of a request failed"
        if first_is_lost and turn == 0:
            pair.get(folder, "victim-gone")
        for i, (sender, pages) in enumerate(zip(senders, chosen)):
            sender.init(len(pages), i)
            sender.send(pages[:CHUNK_PAGES])
            sender.send(pages[CHUNK_PAGES:])
        for sender, state in zip(senders, wait_for(senders, [KVPoll.Success], KVPoll)):
            if state == KVPoll.Failed:
                lost += 1
                continue
            metric = sender.get_transfer_metric()
            metrics.append([turn, metric.transfer_latency_s, metric.transfer_total_bytes])
            sender.clear()
    # Decode still asks the bootstrap server.
    pair.get(folder, "decode-after.json" if first_is_lost else "decode.json")
    node.end()
    return {"metrics": metrics, "lost": lost}


def decode(folder, first, rounds):
    port = int(pair.get(folder, "port"))
    node = Node(folder, "decode", port)
    KVPoll = node.conn.KVPoll
    pair.get(folder, "prefill-up")
    pair.put(folder, "decode-up", b"1")
    while not node.manager.try_ensure_parallel_info(node.address):
        time.sleep(0.05)
    compared = wrong = wrong_tokens = failed = 0
    times = []
    for turn in range(first, rounds):
        begun = time.monotonic()
        chosen = [pages_of(turn, i, 200) for i in range(REQUESTS)]
        receivers = []
        for i, pages in enumerate(chosen):
            receiver = node.conn.NixlKVReceiver(node.manager, node.address, room_of(turn, i))
            receiver.init(0)
            receivers.append(receiver)
        wait_for(receivers, [KVPoll.WaitingForInput], KVPoll)
        for i, (receiver, pages) in enumerate(zip(receivers, chosen)):
            receiver.send_metadata(pages, i, decode_prefix_len=0)
        states = wait_for(receivers, [KVPoll.Success], KVPoll)
        times.append(time.monotonic() - begun)
        for i, (receiver, state) in enumerate(zip(receivers, states)):
            if state == KVPoll.Failed:
                failed += 1
                continue
            size, differ = node.compare(room_of(turn, i), chosen[i])
            compared, wrong = compared + size, wrong + differ
            wrong_tokens += int(node.buffers.output_ids[i][0]) != token_of(room_of(turn, i))
            receiver.clear()
    return {"compared": compared, "wrong": wrong, "wrong_tokens": wrong_tokens,
            "failed": failed, "round_s": times}


def victim(folder):
    """A decode that asks for pages, and is gone before they come."""
    port = int(pair.get(folder, "port"))
    node = Node(folder, "decode", port)
    pair.get(folder, "prefill-up")
    while not node.manager.try_ensure_parallel_info(node.address):
        time.sleep(0.05)
    for i in range(REQUESTS):
        receiver = node.conn.NixlKVReceiver(node.manager, node.address, room_of(0, i))
        receiver.init(0)
        receiver.send_metadata(pages_of(0, i, 200), i, decode_prefix_len=0)
    time.sleep(1)  # the messages are on their way in a thread of ZeroMQ
    pair.put(folder, "victim-gone", b"1")
    os.kill(os.getpid(), signal.SIGKILL)


def hicache(folder):
    """Makes SGLang's HiCache storage over NIXL, which wants a backend for files."""
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.storage.nixl.hicache_nixl import HiCacheNixl
    from nixl._api import nixlBind

    os.environ["SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR"] = str(Path(folder) / "hicache")
    try:
        names = HiCacheStorageConfig.__dataclass_fields__
        values = dict(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
                      is_mla_model=False, is_page_first_layout=False, model_name="model",
                      enable_storage_metrics=False, extra_config={"use_direct_io": False})
        config = HiCacheStorageConfig(**{k: v for k, v in values.items() if k in names})
        storage = HiCacheNixl(config)
    except (RuntimeError, nixlBind.nixlBackendError, nixlBind.nixlNotFoundError) as error:
        return {"made": False, "why": "%s: %s" % (type(error).__name__, error)}
    return {"made": True, "why": storage.backend_selector.backend_name}


def agent_of_hicache(folder):
    """The agent as HiCache builds it: the native one behind the wrapper is replaced."""
    import torch
    from nixl._api import nixl_agent, nixl_agent_config, nixlBind

    config = nixl_agent_config(backends=[])
    agent = nixl_agent("hicache", config)
    native = nixlBind.nixlAgentConfig()
    native.useProgThread, native.useListenThread = config.enable_pthread, config.enable_listen
    native.listenPort, native.syncMode = config.port, nixlBind.NIXL_THREAD_SYNC_RW
    native.pthrDelay, native.lthrDelay = 0, 100000
    native.captureTelemetry = config.capture_telemetry
    agent.agent = nixlBind.nixlAgent("hicache", native)
    agent.plugin_list = agent.agent.getAvailPlugins()
    agent.create_backend("UCX")
    try:
        probe = agent.get_reg_descs([(0, 4096, 1, "rw:/nonexistent-nixl-probe")], "FILE")
        agent.register_memory(probe, backends=["UCX"])
        raised = "nothing"
    except Exception as error:  # HiCache takes any; which one it was is reported
        raised = type(error).__name__
    listed = agent.register_memory(torch.zeros(1 << 20, dtype=torch.uint8)).trim()
    return {"plugins": agent.plugin_list, "probe": raised, "registered": listed.descCount()}


# ---- the driver ----

ROLES = {
    "prefill": lambda folder: prefill(folder, ROUNDS),
    "decode": lambda folder: decode(folder, 0, ROUNDS),
    "prefill-alone": lambda folder: prefill(folder, 2, first_is_lost=True),
    "victim": victim,
    "decode-after": lambda folder: decode(folder, 1, 2),
    "hicache": hicache,
    "agent": agent_of_hicache,
}
SCENARIOS = {
    "exchange": {"prefill": 0, "decode": 0},
    "death": {"prefill-alone": 0, "victim": -signal.SIGKILL, "decode-after": 0},
    "hicache": {"hicache": 0, "agent": 0},
}


def milliseconds(seconds):
    return " ".join("%.0f" % (1000 * one) for one in seconds)


def told(name, results):
    """(lines to print, bytes compared, complaints) of a scenario whose roles all finished."""
    per_round = REQUESTS * REQUEST_PAGES * LAYERS * 2 * PAGE_TOKENS * HEADS * HEAD_SIZE * 2
    lines, wrong, compared = [], [], 0
    if name == "hicache":
        lines.append("HiCache storage: %s" % results["hicache"]["why"])
        lines.append("its agent: %s" % results["agent"])
        if results["agent"]["probe"] != "nixlBackendError":
            wrong.append("the probe for paths raised %s" % results["agent"]["probe"])
        return lines, compared, wrong
    sender = results["prefill" if name == "exchange" else "prefill-alone"]
    receiver = results["decode" if name == "exchange" else "decode-after"]
    rounds = ROUNDS if name == "exchange" else 1
    compared = receiver["compared"]
    if compared != rounds * per_round:
        wrong.append("%d bytes compared instead of %d" % (compared, rounds * per_round))
    for what in ("wrong", "wrong_tokens", "failed"):
        if receiver[what]:
            wrong.append("%s: %d" % (what, receiver[what]))
    expected_lost = 0 if name == "exchange" else REQUESTS
    if sender["lost"] != expected_lost:
        wrong.append("prefill lost %d requests instead of %d" % (sender["lost"], expected_lost))
    moved = sum(metric[2] for metric in sender["metrics"])
    if moved != rounds * per_round:
        wrong.append("SGLang counts %d bytes instead of %d" % (moved, rounds * per_round))
    lines.append("lost %d requests; rounds took %s ms" % (
        sender["lost"], milliseconds(receiver["round_s"])))
    last = max(metric[0] for metric in sender["metrics"])
    lines.append("SGLang's transfer latency of the last round, ms: " + milliseconds(
        metric[1] for metric in sender["metrics"] if metric[0] == last))
    return lines, compared, wrong


def run(name, folder):
    """One scenario, each role a process; (bytes compared, complaints)."""
    folder.mkdir(parents=True)
    shutil.copytree(str(folder.parent / "model"), str(folder / "model"))
    pair.put(folder, "port", str(pair.free_port()).encode())
    environment = dict(os.environ, HF_HUB_OFFLINE="1", SGLANG_HOST_IP="127.0.0.1")
    deadline = time.monotonic() + DEADLINE_S
    processes = [pair.Process(role, [sys.executable, __file__, "--role", role, str(folder)],
                              folder, environment) for role in SCENARIOS[name]]
    try:
        statuses = {process.name: process.wait(deadline) for process in processes}
    finally:
        left = [process.name for process in processes if process.end()]
    wrong = ["%s ended with status %s instead of %d" % (role, statuses[role], status)
             for role, status in SCENARIOS[name].items() if statuses[role] != status]
    wrong += ["%s left processes behind" % role for role in left]
    results = {role: json.loads((folder / (role + ".json")).read_text())
               for role in statuses if (folder / (role + ".json")).exists()}
    if all(role in results for role, status in SCENARIOS[name].items() if status == 0):
        lines, compared, complaints = told(name, results)
    else:
        lines, compared, complaints = [], 0, ["some role did not finish"]
    for line in lines:
        print("  " + line)
    print("  exit statuses:", statuses, flush=True)
    wrong += complaints
    if wrong:
        for process in processes:
            print("--- the end of what %s said:\n%s" % (
                process.name, "\n".join(process.tail())), flush=True)
    return compared, ["%s: %s" % (name, what) for what in wrong]


def main(names):
    compared, complaints = 0, []
    with pair.run_folder() as folder:
        model = Path(folder) / "model"
        for old in [model] + [Path(folder) / name for name in names]:
            shutil.rmtree(str(old), ignore_errors=True)
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(MODEL))
        for name in names:
            print("%s:" % name, flush=True)
            size, wrong = run(name, Path(folder) / name)
            compared, complaints = compared + size, complaints + wrong
    pair.finish("SGLang: %s; %d bytes compared" % (", ".join(names), compared), complaints)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        pair.run_role(ROLES, sys.argv[2], sys.argv[3])
    else:
        main(sys.argv[1:] or list(SCENARIOS))
