"""Memory descriptors: from tensors, from NumPy arrays, and made by hand.

python descriptors.py
"""

import numpy as np

import nixl._utils as nixl_utils
from nixl._api import nixl_agent, nixl_agent_config


def main():
    agent = nixl_agent("my_agent", nixl_agent_config(backends=["UCX"]))

    # Tensors describe themselves: address, length, and whether they are on a GPU.
    try:
        import torch
    except ImportError:
        print("torch is not installed, so tensors are left out")
    else:
        tensors = [torch.randn(100) for _ in range(5)]
        reg_descs = agent.register_memory(tensors)
        assert reg_descs.descCount() == 5
        agent.deregister_memory(reg_descs)

    # So do NumPy arrays. They stay alive until they are deregistered.
    arrays = [np.zeros(100) for _ in range(5)]
    reg_descs = agent.register_memory(arrays)
    assert [length for _, length, _, _ in reg_descs] == [800] * 5
    agent.deregister_memory(reg_descs)

    # By hand: (address, length, device) and the kind of memory.
    addr = nixl_utils.malloc_passthru(1024)
    descs = [(addr, 1024, 0)]
    reg_descs = agent.register_memory(descs, "DRAM")
    agent.deregister_memory(reg_descs)

    # A list for later needs a fourth member: text for the backend, empty for plain memory.
    reg_descs = agent.get_reg_descs([(addr, 1024, 0, "")], "DRAM")
    agent.register_memory(reg_descs)
    print(f"registered {reg_descs.descCount()} descriptor of {reg_descs[0][1]} bytes")
    agent.deregister_memory(reg_descs)
    nixl_utils.free_passthru(addr)

    # Ten thousand of them are a table with the same three columns.
    pool = np.zeros(10_000 * 64, dtype=np.uint8)
    table = np.empty((10_000, 3), dtype=np.uint64)
    table[:, 0] = pool.ctypes.data + np.arange(10_000) * 64
    table[:, 1:] = 64, 0
    reg_descs = agent.register_memory(pool)
    side = agent.prep_xfer_dlist("NIXL_INIT_AGENT", table, "DRAM")
    print(f"prepared {len(table)} descriptors: {side}")
    side.release()
    agent.deregister_memory(reg_descs)


if __name__ == "__main__":
    main()
