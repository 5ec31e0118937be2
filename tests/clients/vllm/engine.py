"""One vLLM engine, prefill or decode, in a process of its own; run.py talks to it over a socket.

The loop is that of vLLM's EngineCoreProc: take requests, step while the scheduler has work, and
give the processor away for a millisecond when a step ran no model.
"""

import json
import sys
import time
from multiprocessing.connection import Client

from vllm import SamplingParams
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlKVConnectorStats
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class Engine:
    """An EngineCore with the requests that it has now, and what became of them."""

    def __init__(self, setup):
        transfer = KVTransferConfig(
            kv_connector=setup["connector"], kv_role=setup["role"], kv_buffer_device="cpu",
            engine_id=setup["engine_id"], kv_load_failure_policy=setup["failure_policy"],
            kv_connector_extra_config={"kv_lease_duration": setup["lease_s"]})
        arguments = EngineArgs(
            model=setup["model"], skip_tokenizer_init=True, dtype="bfloat16", block_size=32,
            max_model_len=4096, max_num_batched_tokens=4096, max_num_seqs=setup["max_num_seqs"],
            enforce_eager=True, distributed_executor_backend="uni",
            worker_cls="kv_worker.KvWorker", kv_transfer_config=transfer,
            additional_config=setup["worker"])
        self.core = EngineCore(arguments.create_engine_config(), UniProcExecutor, log_stats=True)
        self.pool = self.core.scheduler.kv_cache_manager.block_pool
        self.free_at_start = self.pool.get_num_free_blocks()
        self.stats = NixlKVConnectorStats()
        self.started = {}

    def add(self, name, tokens, max_tokens, transfer):
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, detokenize=False,
                                  ignore_eos=True, extra_args={"kv_transfer_params": transfer})
        request = EngineCoreRequest(
            request_id=name, prompt_token_ids=tokens, mm_features=None, sampling_params=sampling,
            pooling_params=None, arrival_time=time.time(), lora_request=None, cache_salt=None,
            data_parallel_rank=None)
        self.started[name] = (time.monotonic(), None, [])
        self.core.add_request(*self.core.preprocess_add_request(request))

    def step(self):
        """One step; the requests that it finished."""
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        if not executed and self.core.scheduler.has_requests():
            time.sleep(0.001)
        finished = []
        for group in (outputs or {}).values():
            if group.scheduler_stats and group.scheduler_stats.kv_connector_stats:
                self.stats.aggregate(
                    NixlKVConnectorStats(data=group.scheduler_stats.kv_connector_stats))
            for output in group.outputs:
                begun, first, tokens = self.started[output.request_id]
                if output.new_token_ids and first is None:
                    first = time.monotonic() - begun
                self.started[output.request_id] = (
                    begun, first, tokens + list(output.new_token_ids))
                if output.finished:
                    finished.append({
                        "name": output.request_id, "why": str(output.finish_reason),
                        "transfer": output.kv_transfer_params, "first_token_s": first,
                        "tokens": self.started.pop(output.request_id)[2]})
        return finished

    def report(self):
        return {
            "counts": self.core.model_executor.collective_rpc("get_counts")[0],
            "stats": self.stats.reduce(), "raw": self.stats.data,
            "requests_left": len(self.core.scheduler.requests),
            "blocks_held": self.free_at_start - self.pool.get_num_free_blocks(),
        }


def main(setup):
    line = Client(setup["socket"])
    begun = time.monotonic()
    engine = Engine(setup)
    line.send(("ready", setup["engine_id"], time.monotonic() - begun))
    while True:
        busy = engine.core.scheduler.has_requests()
        while line.poll(0 if busy else 0.05):
            what, *rest = line.recv()
            if what == "stop":
                engine.core.shutdown()
                line.send(("stopped",))
                return
            if what == "report":
                line.send(("report", engine.report()))
            if what == "compare":
                engine.core.model_executor.collective_rpc("set_comparing", args=tuple(rest))
            if what == "add":
                engine.add(*rest)
            busy = True
        if engine.core.scheduler.has_requests():
            finished = engine.step()
            if finished:
                line.send(("finished", finished))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
