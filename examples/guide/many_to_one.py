"""Many to one: workers write their part into the aggregator's memory, each in its own process.

python many_to_one.py [WORKERS]
"""

import multiprocessing
import sys

import numpy as np

from nixl._api import nixl_agent, nixl_agent_config

ELEMENTS = 1 << 16


def worker(worker_id, channel):
    agent = nixl_agent(f"worker_{worker_id}", nixl_agent_config(backends=["UCX"]))
    gradient = np.full(ELEMENTS, worker_id + 1, dtype=np.float32)
    worker_descs = agent.register_memory(gradient).trim()

    metadata, descs = channel.recv()
    agent.add_remote_agent(metadata)
    xfer_handle = agent.initialize_xfer(
        "WRITE",
        worker_descs,
        agent.deserialize_descs(descs),
        "aggregator",
        f"gradient of worker_{worker_id}".encode(),
    )
    agent.transfer(xfer_handle)
    assert agent.wait(xfer_handle, timeout=60) == "DONE"
    channel.recv()  # stay until the aggregator has everything


def main(num_workers=3):
    spawn = multiprocessing.get_context("spawn")
    aggregator = nixl_agent("aggregator", nixl_agent_config(backends=["UCX"]))
    gradients = np.zeros((num_workers, ELEMENTS), dtype=np.float32)
    aggregator.register_memory([gradients])

    workers = []
    for worker_id in range(num_workers):
        channel, other_end = spawn.Pipe()
        process = spawn.Process(target=worker, args=(worker_id, other_end), daemon=True)
        process.start()
        descs = aggregator.get_xfer_descs([gradients[worker_id]])
        channel.send((aggregator.get_agent_metadata(), aggregator.get_serialized_descs(descs)))
        workers.append((process, channel))

    for worker_id in range(num_workers):
        while not aggregator.check_remote_xfer_done(f"worker_{worker_id}", b"gradient"):
            pass
        assert (gradients[worker_id] == worker_id + 1).all()

    for process, channel in workers:
        channel.send("done")
        process.join(30)
        assert process.exitcode == 0, process.exitcode
    print(f"sum over {num_workers} workers: {gradients.sum(axis=0)[0]:g} in each element")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
