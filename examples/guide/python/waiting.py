"""Waiting without asyncio: for one, for any, for all, with deadlines, and what went wrong.

python waiting.py
"""

import numpy as np

from nixl._api import nixl_agent, nixl_agent_config
from nixl._bindings import nixlCancelledError, nixlTimeoutError


def main():
    # This backend takes its time when it is asked to, so that there is something to wait for.
    params = {"LOOPBACK": {"delay_us": "50000"}}
    config = nixl_agent_config(backends=["LOOPBACK"], backend_params=params)
    with nixl_agent("waiter", config) as agent:
        memory = np.zeros((2, 1 << 20), np.uint8)
        agent.register_memory(memory)
        ours, theirs = agent.get_xfer_descs(memory[0]), agent.get_xfer_descs(memory[1])

        def copy(**more):
            return agent.initialize_xfer("WRITE", ours, theirs, agent.name, **more)

        # wait() sleeps; check_xfer_state() never blocks. One handle gives its state.
        with copy() as handle:
            assert agent.transfer(handle) == "PROC"
            assert agent.wait(handle, timeout=0.001) == "PROC"
            assert agent.wait(handle) == "DONE"
            print(agent.explain(handle))

        # Several give a list of states. mode="any" returns when the first has ended.
        handles = [copy() for _ in range(4)]
        for handle in handles:
            agent.transfer(handle)
        first = agent.wait(handles, timeout=5, mode="any")
        print("at least one is done:", first)
        assert agent.wait(handles, timeout=5) == ["DONE"] * 4

        # A deadline of the transfer's own: it fails and is cancelled when the time is over.
        late = copy(timeout=0.005)
        agent.transfer(late)
        try:
            agent.wait(late)
        except nixlTimeoutError as error:  # which is a TimeoutError, too
            print("late:", error.sentence)
        late.quiesce(timeout=5)  # now its memory may be used for something else

        # Stopping by hand.
        agent.transfer(handles[0])
        handles[0].cancel()
        handles[0].quiesce(timeout=5)
        try:
            agent.check_xfer_state(handles[0])
        except nixlCancelledError as error:
            print("stopped:", error.sentence)
        status = agent.piece_status(handles[0])
        print(f"{status.done} of {status.pieces} pieces, {status.bytes_done} bytes were done")

        # What happened without being asked for: failures of ours, peers that came or went.
        for event in agent.events():
            print(event.kind, event.text)


if __name__ == "__main__":
    main()
