#!/usr/bin/env python3
"""python check_nixl_plugins.py: each backend of nixl, whether it can be used here, and why not.

Ends with 0 when those that agents have by default can be used, else with 1. `nixl-info` tells more.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def find_nixl():
    """The module nixl: an installed one, else that of the folder that `make build` made here."""
    try:
        import nixl
    except ImportError as error:
        built = os.path.join(HERE, "build", "bindings", "python")
        if not os.path.isdir(built):
            sys.exit(
                f"nixl cannot be imported by {sys.executable}: {error}. Install it (pip install "
                "nixl), or build it here (make build)"
            )
        sys.path.insert(0, built)
        os.environ.setdefault("NIXL_PLUGIN_DIR", os.path.join(HERE, "build", "plugins"))
        import nixl
    return nixl


def main():
    nixl = find_nixl()
    from nixl import _bindings

    if not hasattr(_bindings, "_inspect_plugins"):
        sys.exit(f"{nixl.__file__} is an older nixl, or upstream's; this program needs its own")

    print(f"nixl {nixl.__version__} ({os.path.dirname(nixl.__file__)})")
    folder, problem, missing = _bindings._plugin_search()
    print(f"plugins: {problem or folder}\n")
    plugins = _bindings._inspect_plugins(10.0)
    rows = [("NAME", "USABLE", "MEMORY", "FILE")]
    reasons = []
    for plugin in plugins:
        rows.append(
            (
                plugin["name"],
                "yes" if plugin["usable"] else "no",
                ", ".join(plugin["memory"]) or "-",
                plugin["path"] or "linked into the library",
            )
        )
        if not plugin["usable"]:
            reasons.append(f"{plugin['name']}: {plugin['why_unusable']}")
    for name, path in missing:
        rows.append((name, "no", "-", path))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in [rows[0], *sorted(rows[1:])]:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths)), row[3], sep="  ")
    capabilities = nixl.get_capabilities()
    named = {plugin["name"].lower() for plugin in plugins}
    reasons += [f"{name}: {why}" for name, why in capabilities.why.items() if name not in named]
    if reasons:
        print("\nWhat cannot be used, and why:")
        for reason in reasons:
            print(f"  {reason}")
    usable = {plugin["name"] for plugin in plugins if plugin["usable"]}
    return 0 if set(nixl.nixl_agent_config().backends) <= usable else 1


if __name__ == "__main__":
    sys.exit(main())
