#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The modules: loaded by alias, the parameter, and the smallest driver that can be suspended."""

import subprocess
from pathlib import Path

from suspend_lib import (
    BUS,
    Device,
    Modules,
    Skip,
    case,
    device,
    devices,
    expect,
    expect_errno,
    modules,
    require,
    run,
    works,
)

ALIAS = "virtio:d00000004v00001AF4"


def alias_of(dev):
    return (dev.path / "modalias").read_text().strip()


@case("modprobe finds the driver, and all it needs, by the alias of the device")
def autoload():
    if not modules.is_indexed:
        raise Skip("the modules are not in the index of modprobe")
    expect({alias_of(dev) for dev in devices()}, {ALIAS}, "aliases of the devices")
    modules.unload()
    result = subprocess.run(
        ["modprobe", ALIAS], capture_output=True, text=True, check=False, timeout=30
    )
    require(result.returncode == 0, f"modprobe {ALIAS}: {result.stderr.strip()}")
    require(modules.are_loaded(), "the driver that was loaded is not ours")
    for dev in devices():
        require(dev.is_bound, f"{dev.name} is not bound")
        works(dev)


@case("the module that drivers use can't be unloaded under them")
def in_use():
    result = subprocess.run(
        ["rmmod", Modules.CORE], capture_output=True, text=True, check=False, timeout=30
    )
    require(result.returncode != 0, f"{Modules.CORE} was unloaded under {Modules.DRIVER}")
    works(device())


@case("unload and load, over and over")
def over_and_over():
    for _ in range(3):
        modules.unload()
        require(not list(BUS.glob("*/suspend")), "files without a driver")
        modules.load()
    for dev in devices():
        dev.request("suspend")
        dev.request("resume")
        works(dev)


@case("the smallest driver binds, suspends and resumes")
def sample():
    victim = device()
    victim.unbind()
    modules.remove(Modules.SAMPLE)
    modules.insert(Modules.SAMPLE)
    try:
        require(victim.is_bound, "the sample does not bind")
        dev = Device(victim.name)
        expect(dev.driver, Modules.SAMPLE, "driver")
        for _ in range(3):
            dev.request("suspend")
            expect(dev.state, "suspended", "state after suspend")
            expect_errno("EALREADY", "suspend", dev.request, "suspend")
            dev.request("resume")
            expect(dev.state, "running", "state after resume")
        dev.request("suspend")
    finally:
        modules.remove(Modules.SAMPLE)
    expect(victim.is_bound, False, "files without a driver")
    require(not Path(f"/sys/module/{Modules.SAMPLE}").exists(), "the sample is still loaded")
    victim.bind()
    works(victim)


if __name__ == "__main__":
    run()
