"""Notifications: send them, collect them all, or look for one.

python notifications.py
"""

from nixl._api import nixl_agent, nixl_agent_config


def main():
    config = nixl_agent_config(backends=["UCX"])
    agent = nixl_agent("my_agent", config)
    remote = nixl_agent("remote_agent", config)
    agent.add_remote_agent(remote.get_agent_metadata())

    agent.send_notif("remote_agent", b"custom_payload")
    agent.send_notif("remote_agent", b"transfer_id:17")

    # All that arrived since the last call, by sender, in the sender's order.
    received = []
    while len(received) < 2:
        notifs = remote.get_new_notifs()
        for agent_name, notif_list in notifs.items():
            for notif in notif_list:
                print(f"Received from {agent_name}: {notif}")
                received.append(notif)
    assert received == [b"custom_payload", b"transfer_id:17"]

    # One that starts with a tag; others stay where they are, in remote.notifs.
    agent.send_notif("remote_agent", b"something else")
    agent.send_notif("remote_agent", b"transfer_id:18")
    while not remote.check_remote_xfer_done("my_agent", b"transfer_id"):
        pass
    print("Transfer completed")
    assert remote.notifs == {"my_agent": [b"something else"]}


if __name__ == "__main__":
    main()
