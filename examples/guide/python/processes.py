"""Two processes: metadata over a pipe, a transfer, a message behind it, and clean ends.

python processes.py
"""

import multiprocessing

import numpy as np

from nixl._api import nixl_agent, nixl_agent_config


def receive(pipe):
    """The other process: offers memory, and waits for the message that says it is filled."""
    agent = nixl_agent("receiver", nixl_agent_config(backends=["UCX"]))
    memory = np.zeros(1 << 20, np.uint8)
    agent.register_memory(memory)
    descs = agent.get_xfer_descs(memory)
    pipe.send((agent.get_agent_metadata(), agent.get_serialized_descs(descs)))
    while not agent.check_remote_xfer_done("sender", b"filled"):
        pass
    pipe.send(int(memory.min()))
    # Nothing has to be closed: whatever is alive when the interpreter ends is ended in order.


def main():
    # An agent does not come along into a forked child, which is told so by every call. New
    # processes, or forks before the first agent, have agents of their own.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=receive, args=(there,), daemon=True)
    other.start()

    agent = nixl_agent("sender", nixl_agent_config(backends=["UCX"]))
    source = np.full(1 << 20, 42, np.uint8)
    agent.register_memory(source)
    if not here.poll(60):
        raise SystemExit("the other process did not start")
    metadata, descs = here.recv()
    peer = agent.add_remote_agent(metadata)
    handle = agent.initialize_xfer(
        "WRITE", agent.get_xfer_descs(source), agent.deserialize_descs(descs), peer, b"filled"
    )
    agent.transfer(handle)
    print("state:", agent.wait(handle, timeout=30))
    assert here.poll(60) and here.recv() == 42
    other.join(30)
    assert other.exitcode == 0
    print("the other process has ended with status 0")


if __name__ == "__main__":
    main()
