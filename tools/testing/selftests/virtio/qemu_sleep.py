#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The system sleeps and is woken, on a machine whose devices are QEMU's own, on PCI.

What Documentation/virtio/suspend.rst says of a suspended device whose function is behind a root port: it
is reset, and runs when the system is awake. If its function sets No_Soft_Reset, it is suspended still. QEMU
resets devices, too, when the system wakes from S3; not those that keep their state in D3hot.
"""

import contextlib
import os
from pathlib import Path

import sleep_lib
from qemu_lib import (
    cable,
    extended,
    judged,
    native,
    no_failures,
    no_violations,
    path_of,
    run,
    stream,
    suspended,
)
from sleep_lib import BLOCK, MODES, disk_load, is_same, keeps_state
from suspend_lib import PROMPT, Child, Skip, case, expect, require, switch_processor

KEEPS, RESETS = "disk0", "disk1"
OTHER = Path("/sys/devices/system/cpu/cpu1/online")


def sleep(mode):
    """The system sleeps, with one processor.

    QEMU 10.0 may end if one accesses a device by TCG while the other one changes the map of memory,
    which waking up PCI functions does ("iotlb_to_section: Assertion").
    """
    if OTHER.exists():
        switch_processor(OTHER, "0")
    try:
        sleep_lib.sleep(mode)
    finally:
        if OTHER.exists():
            switch_processor(OTHER, "1")


@contextlib.contextmanager
def disks_of(whose):
    """The two disks; only the first one's function sets No_Soft_Reset."""
    with native() if whose == "our" else extended("virtio_blk") as devices:
        disks = {name: devices[name] for name in (KEEPS, RESETS)}
        if any(not (disk.path.resolve().parent / "vendor").exists() for disk in disks.values()):
            raise Skip("the disks are no PCI functions")
        require(keeps_state(disks[KEEPS]), f"{KEEPS} does not set No_Soft_Reset")
        require(not keeps_state(disks[RESETS]), f"{RESETS} sets No_Soft_Reset")
        yield disks


def write(disk):
    """Writes a block to the disk itself; returns it."""
    data = os.urandom(BLOCK)
    fd = os.open(path_of(disk), os.O_RDWR | os.O_SYNC)
    try:
        require(os.pwrite(fd, data, 0) == len(data), "a short write")
    finally:
        os.close(fd)
    return data


@case("{mode}: {whose} disks under load lose nothing", mode=MODES, whose=("our", "the kernel's"))
def busy(mode, whose):
    with disks_of(whose) as disks, contextlib.ExitStack() as stack:
        for disk in disks.values():
            stack.enter_context(disk_load(path_of(disk), writers=2))
        sleep(mode)
        with judged(virtio_blk=2):
            for name, disk in disks.items():
                expect(disk.state, "running", f"state of {name}")
                disk.request("suspend")
                expect(suspended(), {name}, "what is suspended, says QEMU")
                disk.request("resume")
        no_failures(disks)


@case("{mode}: {whose} disks suspended: one is so still, by No_Soft_Reset, and the other runs",
      mode=MODES, whose=("our", "the kernel's"))  # fmt: skip
def suspended_disks(mode, whose):
    with disks_of(whose) as disks:
        data = {name: write(disk) for name, disk in disks.items()}
        with judged(virtio_blk=2):
            for disk in disks.values():
                disk.request("suspend")
            expect(suspended(), set(disks), "what is suspended before, says QEMU")
            sleep(mode)
            expect(suspended(), {KEEPS}, "what is suspended after the sleep, says QEMU")
        for name, state in ((KEEPS, "suspended"), (RESETS, "running")):
            expect(disks[name].state, state, f"state of {name}")
        is_same(path_of(disks[RESETS]), 0, data[RESETS])
        # Who reads of the other one waits until it is resumed.
        reader = Child(is_same, path_of(disks[KEEPS]), 0, data[KEEPS])
        disks[KEEPS].request("resume")
        expect(reader.errno(5 * PROMPT), "success", "who waited")
        expect(suspended(), set(), "what is suspended after the resume, says QEMU")
        with contextlib.ExitStack() as stack:
            for disk in disks.values():
                stack.enter_context(disk_load(path_of(disk), writers=2))
        no_failures(disks)
        no_violations()


@case("{mode}: a TCP connection over a cable lives, and nothing of it is lost", mode=MODES)
def connection(mode):
    with extended("virtio_net") as devices:
        if not (devices["net1"].path.resolve().parent / "vendor").exists():
            raise Skip("the interfaces are no PCI functions")
        with cable(devices) as ends:
            flow = stream(ends)
            flow.moves()
            sleep(mode)
            for _ in range(10):
                flow.moves()
            with judged(virtio_net=1):
                devices["net1"].request("suspend")
                expect(suspended(), {"net1"}, "what is suspended, says QEMU")
                devices["net1"].request("resume")
            flow.moves()
            flow.finish()
        no_failures(devices)


if __name__ == "__main__":
    run()
