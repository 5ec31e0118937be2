"""Runs the real nixl-info, and reads what it prints as its users do."""

import json
import os
import subprocess

import pytest

PROGRAM = os.environ.get("NIXL_INFO", "nixl-info")


def run(*args):
    return subprocess.run([PROGRAM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=60)


def test_plugins_as_table_has_a_row_for_each_of_the_json():
    as_json, as_table = run("plugins", "--json"), run("plugins")
    assert as_json.returncode == as_table.returncode == 0, as_json.stderr
    plugins = json.loads(as_json.stdout)
    assert plugins, "this build has no backend at all"
    lines = as_table.stdout.splitlines()
    assert lines[0].split()[:4] == ["NAME", "USABLE", "MEMORY", "REACH"]
    assert [line.split()[0] for line in lines[1:]] == [plugin["name"] for plugin in plugins]


def test_each_plugin_is_usable_or_says_why_not():
    for plugin in json.loads(run("plugins", "--json").stdout):
        if plugin["usable"]:
            assert plugin["memory"] and (plugin["local"] or plugin["remote"]), plugin
        else:
            assert plugin["why_unusable"], plugin


def test_version_is_a_number_with_points():
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.split()[-1].replace(".", "").isdigit(), done.stdout


@pytest.mark.parametrize("args", [[], ["nonsense"], ["plugins", "--nonsense"]])
def test_wrong_usage_ends_with_2_and_prints_no_result(args):
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr
