"""Meeting by address: only the target listens; the initiator needs no listener of its own.

python direct_meeting.py                     both, in two processes of this host
python direct_meeting.py target [PORT]       on one host
python direct_meeting.py initiator HOST [PORT]   on another
"""

import multiprocessing
import sys
import time

import numpy as np

from nixl._api import nixl_agent, nixl_agent_config


def wait_for(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.001)


def target(port=5555, channel=None):
    config = nixl_agent_config(backends=["UCX"], enable_listen=True, listen_port=port)
    agent = nixl_agent("target", config)
    memory = np.zeros(1 << 20, dtype=np.uint8)
    descs = agent.register_memory(memory).trim()
    if channel:
        channel.send(agent.listen_port())  # port 0 let the system choose

    wait_for(lambda: agent.check_remote_metadata("initiator"), "the initiator", 600)
    agent.send_notif("initiator", agent.get_serialized_descs(descs))
    wait_for(lambda: agent.check_remote_xfer_done("initiator", b"written"), "the data")
    assert memory.min() == memory.max() == 7
    print("target: all bytes arrived")


def initiator(host="127.0.0.1", port=5555):
    agent = nixl_agent("initiator", nixl_agent_config(backends=["UCX"]))
    memory = np.full(1 << 20, 7, dtype=np.uint8)
    local_descs = agent.register_memory(memory).trim()

    # Ask for theirs, and give ours. Both return at once.
    agent.fetch_remote_metadata("target", host, port)
    agent.send_local_metadata(host, port)
    wait_for(lambda: agent.check_remote_metadata("target"), "the target's metadata")

    wait_for(lambda: agent.update_notifs().get("target"), "the target's descriptors")
    remote_descs = agent.deserialize_descs(agent.notifs["target"][0])
    with agent.initialize_xfer("WRITE", local_descs, remote_descs, "target", b"written") as handle:
        agent.transfer(handle)
        assert agent.wait(handle, timeout=30) == "DONE"
    print("initiator: 1 MiB written")


def main():
    spawn = multiprocessing.get_context("spawn")
    channel, other_end = spawn.Pipe()
    process = spawn.Process(target=target, args=(0, other_end), daemon=True)
    process.start()
    initiator("127.0.0.1", channel.recv())
    process.join(30)
    assert process.exitcode == 0, process.exitcode


if __name__ == "__main__":
    role, rest = sys.argv[1:2], sys.argv[2:]
    if role == ["target"]:
        target(*map(int, rest[:1]))
    elif role == ["initiator"]:
        initiator(rest[0], *map(int, rest[1:2]))
    else:
        main()
