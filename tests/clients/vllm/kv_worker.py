"""A vLLM worker that has a KV cache and no model.

vLLM's own engine core, scheduler, executor and NIXL connector run with it as they are. What a
model would do is done here: a step writes the pages that the scheduled tokens fill, with bytes
that are a function of all tokens up to the end of the page, as those of attention are; and a
request whose first tokens were computed elsewhere has its pages compared before it goes on.
"""

import os
import signal
import threading
import time
import zlib

import numpy as np
import torch
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.distributed.kv_transfer import (
    ensure_kv_transfer_initialized,
    ensure_kv_transfer_shutdown,
    get_kv_transfer_group,
)
from vllm.forward_context import set_forward_context
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin
from vllm.v1.worker.utils import allocate_kv_cache
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

ODD = 0x9E3779B97F4A7C15


class Pages:
    """What the bytes of a page have to be, for a layer and the tokens it depends on."""

    def __init__(self, page_bytes):
        self.base = np.random.default_rng(1).integers(0, 2**64, page_bytes // 8, dtype=np.uint64)

    def of(self, tokens, layer):
        """A page, as uint64: `tokens` are all of the sequence up to the end of the page."""
        key = zlib.crc32(np.asarray(tokens, dtype=np.uint32).tobytes())
        return self.base ^ np.uint64(((key << 8 | layer) * ODD) % 2**64)


class Sequence:
    """A request as the scheduler described it so far."""

    def __init__(self, tokens, blocks):
        self.tokens = list(tokens)
        self.prompt = len(self.tokens)
        self.blocks = list(blocks)


class KvWorker(WorkerBase):
    """The worker class to name in vLLM's `worker_cls`."""

    def init_device(self):
        self.device = torch.device("cpu")
        init_distributed_environment(1, self.rank, self.distributed_init_method, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)

    def load_model(self, *, load_dummy_weights=False):
        self.settings = self.vllm_config.additional_config
        self.sequences = {}
        self.comparing = True
        self.counts = {"pages_written": 0, "pages_compared": 0, "bytes_compared": 0,
                       "pages_wrong": 0, "lease_renewals": 0, "compare_s": 0.0, "write_s": 0.0}

    def get_kv_cache_spec(self):
        model, cache = self.model_config, self.cache_config
        spec = FullAttentionSpec(
            block_size=cache.block_size, num_kv_heads=model.get_num_kv_heads(self.parallel_config),
            head_size=model.get_head_size(), dtype=model.dtype)
        return {"model.layers.%d.self_attn.attn" % layer: spec
                for layer in range(model.get_num_layers(self.parallel_config))}

    def determine_available_memory(self):
        return self.settings["kv_cache_bytes"]

    def initialize_from_config(self, config):
        self.cache_config.num_gpu_blocks = config.num_blocks
        ensure_kv_transfer_initialized(self.vllm_config, config)
        caches = allocate_kv_cache(
            config, self.device, self.cache_config.get_resolved_kv_cache_layout())
        # One row per block, one uint64 column per 8 bytes of the page.
        self.layers = [self.rows_of(caches[name], config.num_blocks) for name in sorted(
            caches, key=lambda name: int(name.split(".")[2]))]
        self.pages = Pages(self.layers[0].shape[1] * 8)
        get_kv_transfer_group().register_kv_caches(caches)
        if self.settings.get("kill"):
            threading.Thread(target=self.kill_in_the_middle, daemon=True).start()

    @staticmethod
    def rows_of(cache, num_blocks):
        """A layer's cache as uint64 [blocks, words per page], over the same memory."""
        page_bytes = cache[0].numel() * cache.element_size()
        step = cache.stride(0) * cache.element_size()
        whole = torch.empty(0, dtype=torch.uint8).set_(
            cache.untyped_storage(), cache.storage_offset() * cache.element_size(),
            (num_blocks, page_bytes), (step, 1))
        return whole.numpy().view(np.uint64)

    def get_kv_connector_handshake_metadata(self):
        return {(0, 0): get_kv_transfer_group().get_handshake_metadata()}

    def compile_or_warm_up_model(self):
        return CompilationTimes(0.0, 0.0)

    def get_supported_tasks(self):
        return ("generate",)

    def shutdown(self):
        ensure_kv_transfer_shutdown()

    # ---- a step ----

    def execute_model(self, scheduled):
        for gone in scheduled.finished_req_ids:
            self.sequences.pop(gone, None)
        leases = dict(get_kv_transfer_group().connector_worker._reqs_to_send)
        if not scheduled.total_num_scheduled_tokens:
            output = KVConnectorModelRunnerMixin.kv_connector_no_forward(
                scheduled, self.vllm_config)
            self.count_renewals(leases)
            return output
        computed = self.follow(scheduled)
        with set_forward_context(None, self.vllm_config), \
                KVConnectorModelRunnerMixin.maybe_get_kv_connector_output(scheduled) as kv_output:
            sampled = [self.forward(request, computed[request], count)
                       for request, count in scheduled.num_scheduled_tokens.items()]
            time.sleep(self.settings.get("step_s", 0.0))
        self.count_renewals(leases)
        requests = list(scheduled.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=requests, req_id_to_index={name: i for i, name in enumerate(requests)},
            sampled_token_ids=sampled, kv_connector_output=kv_output)

    def follow(self, scheduled):
        """Takes in what the scheduler says; how many tokens of each request are computed."""
        computed = {}
        for new in scheduled.scheduled_new_reqs:
            self.sequences[new.req_id] = Sequence(new.prompt_token_ids, new.block_ids[0])
            computed[new.req_id] = new.num_computed_tokens
            if self.comparing:
                self.compare(self.sequences[new.req_id], new.num_computed_tokens)
        known = scheduled.scheduled_cached_reqs
        for name, blocks, done in zip(known.req_ids, known.new_block_ids,
                                      known.num_computed_tokens):
            sequence = self.sequences[name]
            if name in known.resumed_req_ids:
                sequence.blocks = list(blocks[0])
            elif blocks:
                sequence.blocks += blocks[0]
            computed[name] = done
        return computed

    def spans(self, sequence, first, end):
        """The pages that hold tokens first..end-1: (block, how many tokens a page depends on)."""
        size = self.cache_config.block_size
        known = max(end, sequence.prompt)
        for page in range(first // size, (end + size - 1) // size):
            yield sequence.blocks[page], min((page + 1) * size, known)

    def compare(self, sequence, computed):
        """Every byte that is said to be there against what it has to be."""
        begun = time.monotonic()
        for block, depends in self.spans(sequence, 0, computed):
            for layer, rows in enumerate(self.layers):
                right = np.array_equal(
                    rows[block], self.pages.of(sequence.tokens[:depends], layer))
                self.counts["pages_compared"] += 1
                self.counts["bytes_compared"] += rows[block].nbytes
                self.counts["pages_wrong"] += not right
        self.counts["compare_s"] += time.monotonic() - begun

    def forward(self, name, done, count):
        """Writes the pages of tokens done..done+count-1; the sampled token, if there is one."""
        sequence = self.sequences[name]
        end = done + count
        begun = time.monotonic()
        for block, depends in self.spans(sequence, done, end):
            for layer, rows in enumerate(self.layers):
                rows[block] = self.pages.of(sequence.tokens[:depends], layer)
                self.counts["pages_written"] += 1
        self.counts["write_s"] += time.monotonic() - begun
        if end < len(sequence.tokens):
            return []  # a part of a prompt
        key = zlib.crc32(np.asarray(sequence.tokens, dtype=np.uint32).tobytes())
        sequence.tokens.append(key % 1000)
        return [sequence.tokens[-1]]

    def count_renewals(self, before):
        """Leases that a heartbeat made longer during a step."""
        now = get_kv_transfer_group().connector_worker._reqs_to_send
        self.counts["lease_renewals"] += sum(
            now[name] > end for name, end in before.items() if name in now)

    def get_counts(self):
        return self.counts

    def set_comparing(self, on):
        """Off: a round that is timed, and whose bytes nobody looks at."""
        self.comparing = on

    def kill_in_the_middle(self):
        """Ends the process `kill` by SIGKILL as soon as some, not all, reads were posted."""
        posted = get_kv_transfer_group().connector_worker._recving_transfers
        while len(posted) < self.settings["kill_after"]:
            time.sleep(0.0001)
        os.kill(self.settings["kill"], signal.SIGKILL)
