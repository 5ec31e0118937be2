"""The basic workflow: two agents in two processes, one WRITE with a notification.

    python basic_workflow.py

Memory is torch tensors where torch is installed, NumPy arrays elsewhere; both are used alike.
"""

import multiprocessing

from nixl._api import nixl_agent, nixl_agent_config


def zeros():
    """Two blocks of 1024 float32 numbers."""
    try:
        import torch

        return [torch.zeros(1024, dtype=torch.float32) for _ in range(2)]
    except ImportError:
        import numpy as np

        return [np.zeros(1024, dtype=np.float32) for _ in range(2)]


def target(channel):
    agent = nixl_agent("remote_agent_name", nixl_agent_config(backends=["UCX"]))
    blocks = zeros()
    reg_descs = agent.register_memory(blocks)

    # Where to write: metadata says how to get there, descriptors say where.
    channel.send((agent.get_agent_metadata(), agent.get_serialized_descs(reg_descs.trim())))
    while not agent.check_remote_xfer_done("my_agent", b"transfer_id"):
        pass
    channel.send([float(block.sum()) for block in blocks])
    agent.deregister_memory(reg_descs)


def main():
    spawn = multiprocessing.get_context("spawn")
    channel, remote_end = spawn.Pipe()
    process = spawn.Process(target=target, args=(remote_end,), daemon=True)
    process.start()

    # 1. An agent, with its backends.
    config = nixl_agent_config(backends=["UCX"])
    agent = nixl_agent("my_agent", config)

    # 2. Memory, registered.
    tensors = zeros()
    for number, tensor in enumerate(tensors, start=1):
        tensor[:] = number
    reg_descs = agent.register_memory(tensors)

    # 3. Metadata of the other agent, by whatever way the program has: here a pipe.
    remote_metadata, remote_bytes = channel.recv()
    name = agent.add_remote_agent(remote_metadata)
    local_descs = reg_descs.trim()
    remote_descs = agent.deserialize_descs(remote_bytes)

    # 4. A transfer: the operation, our side, their side, their name, and a message for the end.
    xfer_handle = agent.initialize_xfer("WRITE", local_descs, remote_descs, name, b"transfer_id")

    # 5. Posting does not block.
    state = agent.transfer(xfer_handle)

    # 6. Poll until it is done. A failure is an exception; agent.wait(xfer_handle) sleeps instead.
    while state != "DONE":
        state = agent.check_xfer_state(xfer_handle)
        if state == "ERR":
            raise RuntimeError("the transfer failed")

    sums = channel.recv()
    process.join(10)
    assert sums == [1024.0, 2048.0], sums
    print(f"{name.decode()} received blocks with the sums {sums}")

    # 7. Give everything back.
    agent.release_xfer_handle(xfer_handle)
    agent.deregister_memory(reg_descs)


if __name__ == "__main__":
    main()
