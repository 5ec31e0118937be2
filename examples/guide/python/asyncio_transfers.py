"""Transfers and messages in asyncio: many at once, with deadlines, cancelled, and awaited.

python asyncio_transfers.py
"""

import asyncio

import numpy as np

from nixl._api import nixl_agent, nixl_agent_config
from nixl._bindings import nixlCancelledError

BLOCKS, BLOCK = 16, 64 * 1024


async def decode(agent, blocks):
    """Waits for messages and takes note of the blocks that they announce."""
    arrived = set()
    async for notifs in agent.iter_notifs():
        for messages in notifs.values():
            arrived.update(int(message.split(b":")[1]) for message in messages)
        if len(arrived) == blocks:
            return arrived


async def main():
    config = nixl_agent_config(backends=["UCX"])
    with nixl_agent("prefill", config) as prefill, nixl_agent("decoder", config) as decoder:
        source = np.random.default_rng(1).integers(0, 255, (BLOCKS, BLOCK), np.uint8)
        target = np.zeros_like(source)
        prefill.register_memory(source)
        decoder.register_memory(target)
        peer = prefill.add_remote_agent(decoder.get_agent_metadata())

        def write(i):
            ours = prefill.get_xfer_descs(source[i])
            theirs = decoder.get_xfer_descs(target[i])
            return prefill.initialize_xfer("WRITE", ours, theirs, peer, b"block:%d" % i)

        # All blocks at once. Each message arrives behind the data of its transfer.
        decoding = asyncio.ensure_future(decode(decoder, BLOCKS))
        handles = [write(i) for i in range(BLOCKS)]
        states = await asyncio.gather(
            *[prefill.transfer_async(handle, timeout=10) for handle in handles]
        )
        assert states == ["DONE"] * BLOCKS and (source == target).all()
        assert await decoding == set(range(BLOCKS))
        print(f"{BLOCKS} blocks of {BLOCK} bytes have arrived")

        # One queue serves everybody: what was taken is not there any more.
        assert decoder.get_new_notifs() == {}
        assert await decoder.next_notifs(timeout=0.01) == {}

        # Cancelling the task cancels the transfer. Before its memory is used for something else,
        # quiesce_async() makes sure that nothing of it can land any more.
        task = asyncio.ensure_future(prefill.transfer_async(handles[0]))
        await asyncio.sleep(0)
        task.cancel()
        try:
            print("it was faster:", await task)
        except asyncio.CancelledError:
            await prefill.quiesce_async(handles[0])
            try:
                prefill.check_xfer_state(handles[0])
            except nixlCancelledError as error:
                print("cancelled:", error.sentence)
        for handle in handles:
            handle.release()


if __name__ == "__main__":
    asyncio.run(main())
