#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""QEMU's own devices are suspended at random moments, under load that is verified.

QEMU says each time whether the device is suspended, and in the end that the driver did nothing
against the rules. QEMU_CYCLES says how often a device is suspended, 25 times by default, and on a
kernel that is slow less often.
"""

import contextlib
import fcntl
import os
import random
import struct
import time
from pathlib import Path

import suspend_lib
from blk_lib import blocked
from qemu_lib import (
    Echo,
    ask,
    cable,
    connect,
    entropy,
    extended,
    in_one_go,
    judged,
    missing,
    native,
    no_failures,
    path_of,
    plain,
    qmp,
    run,
    status,
    stream,
    suspended,
)
from sleep_lib import disk_load
from suspend_lib import (
    BIT,
    PROMPT,
    SLOWNESS,
    TIMEOUT_MS,
    Child,
    Reader,
    case,
    expect,
    expect_errno,
    require,
    select_rng,
    sh,
    wait_for,
)

CYCLES = int(os.environ.get("QEMU_CYCLES", max(5, 25 // SLOWNESS)))
SCSI_CYCLES = max(3, CYCLES // 4)
# How often all devices are suspended at the same time.
AT_ONCE = max(2, CYCLES // 5)
suspend_lib.CASE_SECONDS += 4 * CYCLES * SLOWNESS
suspend_lib.FILE_SECONDS += 10 * CYCLES * SLOWNESS
# How long a device stays suspended, and runs in between, in seconds.
SUSPENDED, RUNNING = (0.0, 0.05), (0.0, 0.1)
# What has a logical unit reset (scsi/sg.h).
SG_SCSI_RESET, SG_SCSI_RESET_DEVICE = 0x2284, 1
# How often QEMU is asked, which takes longer than all else.
ASKED = 0.3


def expect_counts(devices, before, times):
    """Each device has been suspended and resumed so often since then, without a failure."""
    for name, dev in devices.items():
        grown = tuple(now - then for now, then in zip(dev.counts(), before[name]))
        expect(grown, (times[name], times[name], 0), f"counts of {name}")
    no_failures(devices)


def cycles(devices, moves=lambda: None, count=CYCLES):
    """Suspends and resumes one of the devices at a time, so often for each."""
    seed = random.randrange(1 << 32)
    print(f"# seed {seed}")
    choose = random.Random(seed)
    times = dict.fromkeys(devices, 0)
    before = {name: dev.counts() for name, dev in devices.items()}
    for number in range(count * len(devices)):
        name = choose.choice(list(devices))
        devices[name].request("suspend")
        expect(devices[name].state, "suspended", f"state of {name}")
        time.sleep(choose.uniform(*SUSPENDED))
        if number == 0 or choose.random() < ASKED:
            expect(suspended(), {name}, "what is suspended, says QEMU")
        devices[name].request("resume")
        expect(devices[name].state, "running", f"state of {name}")
        times[name] += 1
        moves()
        time.sleep(choose.uniform(*RUNNING))
    expect_counts(devices, before, times)


def while_it_is_read(dev):
    select_rng(dev)
    with judged(virtio_rng=CYCLES), Reader() as reader:
        require(reader.get(5 * PROMPT), "no entropy comes")

        def moves():
            # What was received before is not what comes after.
            reader.get(0)
            require(reader.get(5 * PROMPT), "no entropy comes after the resume")

        cycles({"rng0": dev}, moves)


@case(f"our entropy device: {CYCLES} cycles while it is read")
def our_rng():
    while_it_is_read(entropy())


@case(f"the kernel's virtio_rng: {CYCLES} cycles while it is read")
def kernel_rng():
    with extended("virtio_rng") as devices:
        while_it_is_read(devices["rng0"])


def on_disks(devices):
    disks = {name: devices[name] for name in ("disk0", "disk1")}
    first, second = map(path_of, disks.values())
    with judged(virtio_blk=2 * CYCLES), disk_load(first), disk_load(second):
        cycles(disks)


@case(f"our disks: {CYCLES} cycles of each under load: no byte is different")
def our_blk():
    with native() as devices:
        on_disks(devices)


@case(f"the kernel's virtio_blk: {CYCLES} cycles of each disk under load: no byte is different")
def kernel_blk():
    with extended("virtio_blk") as devices:
        on_disks(devices)


@case(f"the kernel's virtio_net: {CYCLES} cycles of each interface: TCP loses nothing")
def kernel_net():
    with extended("virtio_net") as devices, cable(devices) as ends:
        connect(devices)
        flow, echo = stream(ends), Echo()
        flow.moves()
        echo.moves()

        def moves():
            flow.moves()
            echo.moves()

        with judged(virtio_net=3 * CYCLES):
            cycles(devices, moves)
        flow.finish()
        echo.finish()
        print(f"# {flow.bytes} bytes over the cable, {echo.bytes} to the host and back")
        expect(missing(), 0, "lost pings")


def at_once(devices, moves=lambda: None):
    """Suspends all devices in one go, and resumes them so."""
    before = {name: dev.counts() for name, dev in devices.items()}
    for _ in range(AT_ONCE):
        for goal, names in (("suspend", set(devices)), ("resume", set())):
            in_one_go(devices, goal)
            expect(suspended(), names, f"what is suspended after the {goal}, says QEMU")
        moves()
        time.sleep(random.uniform(*RUNNING))
    expect_counts(devices, before, dict.fromkeys(devices, AT_ONCE))


@case(f"our drivers: all devices at once, {AT_ONCE} times under load: nothing is different")
def our_at_once():
    with native() as devices:
        select_rng(devices["rng0"])
        disks = [path_of(devices[name]) for name in ("disk0", "disk1")]
        with judged(virtio_blk=2 * AT_ONCE, virtio_rng=AT_ONCE), Reader() as reader:
            with disk_load(disks[0]), disk_load(disks[1]):

                def moves():
                    reader.get(0)
                    require(reader.get(5 * PROMPT), "no entropy comes after the resume")

                at_once(devices, moves)


@case(f"the kernel's drivers: all devices at once, {AT_ONCE} times under load: nothing is lost")
def kernel_at_once():
    with extended("virtio_blk", "virtio_net") as devices, cable(devices) as ends:
        connect(devices)
        flow, echo = stream(ends), Echo()
        disks = [path_of(devices[name]) for name in ("disk0", "disk1")]

        def moves():
            flow.moves()
            echo.moves()

        moves()
        with judged(virtio_blk=2 * AT_ONCE, virtio_net=3 * AT_ONCE):
            with disk_load(disks[0], writers=2), disk_load(disks[1], writers=2):
                at_once(devices, moves)
        flow.finish()
        echo.finish()
        expect(missing(), 0, "lost pings")


@contextlib.contextmanager
def scsi():
    """The kernel's virtio_scsi, and the file of its one disk."""
    sh("modprobe", "sd_mod")
    with extended("virtio_scsi") as devices:
        dev = devices["scsi0"]
        yield dev, wait_for(lambda: disk_at(dev, 0), "there is a SCSI disk", 10 * PROMPT)


def disk_at(dev, target):
    """The file of a SCSI disk; None if there is none."""
    found = list(dev.path.glob(f"host*/target*/*:0:{target}:0/block/*"))
    return f"/dev/{found[0].name}" if found else None


@case(f"the kernel's virtio_scsi: {SCSI_CYCLES} cycles under load: no byte is different")
def kernel_scsi():
    with scsi() as (dev, disk), judged(virtio_scsi=SCSI_CYCLES), disk_load(disk):
        cycles({"scsi0": dev}, count=SCSI_CYCLES)


@case("the kernel's virtio_scsi: a suspend that takes too long: it is taken back, and all goes on")
def scsi_too_long():
    limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    limits["id"] = "disk3"
    with scsi() as (dev, disk), judged(virtio_scsi=1):
        with disk_load(disk):
            dev.write("timeout_ms", "300")
            # So few requests a second that there are always some in process.
            ask("qmp", command="block_set_io_throttle", arguments=limits | {"iops": 1})
            try:
                expect_errno("ETIMEDOUT", "suspend", dev.request, "suspend")
                expect(dev.read("last_error"), "ETIMEDOUT commands were not finished in time", "why")
                expect(dev.state, "running", "state")
                expect(suspended(), set(), "what is suspended, says QEMU")
            finally:
                ask("qmp", command="block_set_io_throttle", arguments=limits)
        dev.write("timeout_ms", str(4 * TIMEOUT_MS))
        with disk_load(disk):
            dev.request("suspend")
            expect(suspended(), {"scsi0"}, "what is suspended, says QEMU")
            dev.request("resume")


@case("the kernel's virtio_scsi: resets and scans wait while it is suspended, and are answered then")
def scsi_asked():
    with scsi() as (dev, disk), judged(virtio_scsi=2):
        file = os.open(disk, os.O_RDONLY)
        host = next(dev.path.glob("host*")).name
        scan = Path("/sys/class/scsi_host", host, "scan")

        def reset():
            fcntl.ioctl(file, SG_SCSI_RESET, struct.pack("i", SG_SCSI_RESET_DEVICE))

        reset()
        dev.request("suspend")
        asked = [Child(reset), Child(scan.write_text, "0 1 0"), Child(os.pread, file, 4096, 0)]
        # Disks are put to sleep by commands.
        sleep = Path("/sys/power/state")
        expect_errno("EBUSY", "a sleep of the system", sleep.write_text, "freeze")
        blocked(asked[0])
        for child in asked[1:]:
            blocked(child, 0)
        dev.request("resume")
        for child in asked:
            expect(child.errno(10 * PROMPT, "who waited goes on"), "success", "what was asked")
        # Whoever is killed does not wait.
        dev.request("suspend")
        killed = Child(reset)
        blocked(killed)
        killed.kill()
        expect(dev.state, "suspended", "state")
        dev.request("resume")
        with disk_load(disk):
            os.close(file)


@case("the kernel's virtio_scsi: a disk comes while suspended, and goes: both are seen after it")
def scsi_hotplug():
    with scsi() as (dev, _disk), judged(virtio_scsi=2):
        qmp("blockdev-add", driver="null-co", node_name="late", size=1 << 20)
        dev.request("suspend")
        qmp("device_add", driver="scsi-hd", bus="scsi0.0", id="late", drive="late", scsi_id=1)
        time.sleep(0.2)
        expect(disk_at(dev, 1), None, "a disk while suspended")
        dev.request("resume")
        wait_for(lambda: disk_at(dev, 1), "the disk is seen", 10 * PROMPT)
        dev.request("suspend")
        qmp("device_del", id="late")
        time.sleep(0.2)
        require(disk_at(dev, 1), "the disk is gone while suspended")
        dev.request("resume")
        wait_for(lambda: not disk_at(dev, 1), "it is seen that the disk is gone", 10 * PROMPT)
        qmp("blockdev-del", node_name="late")


@case("a device that does not offer it works, and is not suspended")
def without():
    with native(), judged():
        dev = plain()
        expect(dev.read("revision"), "none", "revision")
        require(not dev.has_feature(BIT["1.4"]), "the feature was accepted")
        with disk_load(path_of(dev), writers=2):
            expect_errno("EOPNOTSUPP", "suspend", dev.request, "suspend")
            expect(dev.state, "running", "state")


@case("{whose} disk is unbound while suspended: it is reset, and runs when it is bound again",
      whose=("our", "the kernel's"))
def unbound(whose):
    with native() if whose == "our" else extended("virtio_blk") as devices:
        disk = devices["disk0"]
        with judged(virtio_blk=2):
            disk.request("suspend")
            expect(suspended(), {"disk0"}, "what is suspended, says QEMU")
            disk.unbind()
            told = status()["devices"]["disk0"]
            require(not told["suspended"], "it is suspended still, says QEMU")
            words = " ".join(told["status"])
            require("DRIVER" not in words, f"it was not reset: {words}")
            disk.bind()
            with disk_load(path_of(disk), writers=2):
                disk.request("suspend")
                expect(suspended(), {"disk0"}, "what is suspended, says QEMU")
                disk.request("resume")


if __name__ == "__main__":
    run()
