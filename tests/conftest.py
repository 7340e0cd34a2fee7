"""Tests run on the CPU and without the hub, wherever they run; those that want more say so with a marker."""

import os


def pytest_configure(config):
    wanted = config.getoption("markexpr")
    if "not gpu" in wanted:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if "not optin" in wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"
