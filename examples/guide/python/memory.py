"""Memory from NumPy, from tensors of any library, by address; and how long it has to live.

python memory.py
"""

import numpy as np

from nixl._api import nixl_agent, nixl_agent_config


class Tensor:
    """Stands for a tensor of some library: all that counts is that it speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def main():
    with nixl_agent("keeper", nixl_agent_config(backends=["LOOPBACK"])) as agent:
        # A registration keeps the objects that it was made of alive until it is taken back.
        kept = agent.register_memory([np.arange(1000.0), np.zeros(1000)])
        source, target = (agent.get_xfer_descs([d[:3]], "DRAM") for d in kept)
        with agent.initialize_xfer("WRITE", source, target, agent.name) as handle:
            agent.transfer(handle)
            agent.wait(handle)
        agent.deregister_memory(kept)

        # Any tensor that speaks DLPack. Torch tensors are taken as they are, too.
        tensor, result = Tensor(np.ones((4, 256), np.float32)), np.zeros((4, 256), np.float32)
        agent.register_memory([tensor])
        agent.register_memory([result])
        handle = agent.initialize_xfer(
            "WRITE", agent.get_xfer_descs(tensor), agent.get_xfer_descs(result), agent.name
        )
        agent.transfer(handle)
        assert agent.wait(handle) == "DONE" and result.min() == 1

        # By address, with a length in bytes and a device: then its life is the program's business.
        agent.register_memory([(result.ctypes.data + 1024, 1024, 0)], "DRAM")

        # What does not lie in one piece is refused with a reason.
        try:
            agent.register_memory([result[:, ::2]])
        except TypeError as error:
            print("refused:", error)

        # Memory that is known to be read-only is read, and never the side that is written.
        constant = np.full((4, 256), 2, np.float32)
        constant.flags.writeable = False
        agent.register_memory(constant)
        try:
            agent.initialize_xfer(
                "READ", agent.get_xfer_descs(constant), agent.get_xfer_descs(result), agent.name
            )
        except ValueError as error:
            print("refused:", error)


if __name__ == "__main__":
    main()
