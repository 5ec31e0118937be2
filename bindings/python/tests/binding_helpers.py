"""What several tests need: places, waiting with a deadline, addresses of arrays."""

import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def until(condition, what, seconds=20):
    """Polls until `condition()` is true, and returns what it gave; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.001)
    pytest.fail(f"waited {seconds} s for {what}")


def finish(agent, handle, seconds=20):
    """Polls a posted transfer until it is done; a failure raises."""
    until(lambda: agent.check_xfer_state(handle) == "DONE", "a transfer", seconds)


def run(agent, handle, *message):
    """Posts a transfer and waits until it is done."""
    if agent.transfer(handle, *message) != "DONE":
        finish(agent, handle)


def address(array):
    return array.__array_interface__["data"][0]
