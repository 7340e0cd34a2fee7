"""Tests run on the CPU and without the hub, wherever they run; those that want more say so with a marker. Generated
examples are the same every time: a new counterexample is looked for on purpose, not in somebody's CI."""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_configure(config):
    wanted = config.getoption("markexpr")
    if "not gpu" in wanted:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if "not optin" in wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"
