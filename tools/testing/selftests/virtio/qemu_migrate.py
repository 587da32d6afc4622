#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The guest moves to another QEMU process, or back in time, while its devices are suspended.

What SUSPEND is for. The load is verified: disks by writers that read back what they wrote, the
network by a TCP connection over a cable between two devices, which must lose nothing. QEMU_HOPS
says how often the guest moves in the longest case, 10 times by default, and on a kernel that is slow
less often.
"""

import contextlib
import mmap
import os
import socket

from net_lib import is_up
from qemu_lib import (
    GATEWAY,
    Echo,
    Refused,
    ask,
    cable,
    connect,
    entropy,
    extended,
    hop,
    judged,
    missing,
    native,
    no_failures,
    no_violations,
    path_of,
    qmp,
    reach_each_other,
    resume_all,
    run,
    size_of,
    status,
    stream,
    suspend_all,
    suspended,
)
from sleep_lib import BLOCK, disk_load, is_same
from suspend_lib import (
    PROMPT,
    SLOWNESS,
    Child,
    Fail,
    case,
    entropy_flows,
    errno_name,
    expect,
    require,
    select_rng,
    wait_for,
)

HOPS = int(os.environ.get("QEMU_HOPS", max(3, 10 // SLOWNESS)))
MIB = 1 << 20
EXTENDED = ("virtio_blk", "virtio_net")


@contextlib.contextmanager
def load_on(devices, names=("disk0", "disk1")):
    """Writers on disks that verify."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(disk_load(path_of(devices[name]), writers=2))
        yield


@case(f"the kernel's drivers: {HOPS} hops with all devices suspended, under load")
def kernel_hops():
    with extended(*EXTENDED) as devices, cable(devices) as ends:
        devices["rng0"] = entropy()
        connect(devices)
        flow = stream(ends)
        flow.moves()
        with load_on(devices):
            for number in range(HOPS):
                with judged(virtio_blk=2, virtio_net=3, virtio_rng=1):
                    suspend_all(devices)
                    hop()
                    expect(suspended(), set(devices), f"what arrived suspended, hop {number}")
                    for name, dev in devices.items():
                        expect(dev.state, "suspended", f"state of {name}")
                    resume_all(devices)
                flow.moves()
                expect(missing(), 0, "lost pings")
                # QEMU's user network takes none of its connections along.
                echo = Echo()
                echo.moves()
                echo.finish()
        flow.finish()
        print(f"# {flow.bytes} bytes over the cable")
        no_failures(devices)
        select_rng(devices["rng0"])
        entropy_flows()


@case("our drivers: 3 hops with all devices suspended, under load")
def our_hops():
    with native() as devices:
        select_rng(devices["rng0"])
        with load_on(devices):
            for _ in range(3):
                with judged(virtio_blk=2, virtio_rng=1):
                    suspend_all(devices)
                    hop()
                    expect(suspended(), set(devices), "what arrived suspended")
                    resume_all(devices)
                entropy_flows()
        no_failures(devices)


@case("all devices suspended: into a file, and on from there")
def through_file():
    with extended(*EXTENDED) as devices, cable(devices) as ends:
        connect(devices)
        flow = stream(ends)
        with load_on(devices):
            suspend_all(devices)
            told = hop(through_file=True)
            require(told["bytes"] > MIB, f"a file of {told['bytes']} bytes")
            expect(suspended(), set(devices), "what arrived suspended")
            resume_all(devices)
        flow.finish()
        expect(missing(), 0, "lost pings")
        no_failures(devices)


@case("a connection to the host, whose end QEMU's user network leaves behind: it is reset, and no other")
def to_the_host():
    with extended("virtio_net") as devices, cable(devices) as ends:
        connect(devices)
        flow = stream(ends)
        with socket.create_connection((GATEWAY, ask("server")), timeout=10 * PROMPT) as connection:
            connection.sendall(b"here")
            expect(connection.recv(4, socket.MSG_WAITALL), b"here", "what comes back")
            suspend_all(devices)
            resume_all(devices)
            connection.sendall(b"still here")
            expect(connection.recv(10, socket.MSG_WAITALL), b"still here", "what comes back")
            suspend_all(devices)
            hop()
            resume_all(devices)
            try:
                connection.sendall(b"there")
                connection.recv(5)
            except OSError as error:
                expect(errno_name(error.errno), "ECONNRESET", "the error of the connection")
            else:
                raise Fail("the connection is there still: Documentation says that it is not")
        flow.moves()
        flow.finish()
        echo = Echo()
        echo.moves()
        echo.finish()
        no_failures(devices)
        no_violations()


@case("a QEMU whose devices lack the feature is refused, and the guest goes on: {state}",
      state=("suspended", "running"))
def lacks_the_feature(state):
    with extended("virtio_blk") as devices, load_on(devices):
        if state == "suspended":
            suspend_all(devices)
        before = status()["suspends"]
        try:
            hop(change=[["suspend=1.4", "suspend=off"]])
        except Refused as refused:
            require("eature" in str(refused), f"another reason: {refused}")
        else:
            raise Fail("a guest came to where its devices have no SUSPEND")
        for name, dev in devices.items():
            expect(dev.state, state, f"state of {name}")
        expect(status()["suspends"], before, "suspends")
        if state == "suspended":
            expect(suspended(), set(devices), "what is suspended, says QEMU")
            resume_all(devices)
        no_failures(devices)
        no_violations()


def grow(name, disk):
    """Has QEMU grow a disk; returns its new size."""
    size = size_of(disk) + MIB
    qmp("block_resize", node_name=name, size=size)
    return size


@case("a disk that grows {when} is larger after the resume, and not before",
      when=("before the hop", "after the hop"))
def grown(when):
    with extended("virtio_blk") as devices:
        disk = devices["disk0"]
        before = size_of(disk)
        disk.request("suspend")
        if when == "before the hop":
            size = grow("disk0", disk)
            require(status()["devices"]["disk0"]["pending"], "QEMU has no change to tell of")
        hop()
        if when == "after the hop":
            size = grow("disk0", disk)
        expect(size_of(disk), before, "the size while suspended")
        disk.request("resume")
        wait_for(lambda: size_of(disk) == size, "the new size", 5 * PROMPT)
        # What is new can be used.
        data = os.urandom(BLOCK)
        with open(path_of(disk), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, size - BLOCK)
            os.fsync(file.fileno())
        is_same(path_of(disk), size - BLOCK, data)
        no_violations()


@case("a link that goes down {when} is down after the resume, and up when it comes up",
      when=("before the hop", "after the hop"))
def link(when):
    with extended("virtio_net") as devices, cable(devices) as ends:
        end, dev = ends[0], devices["net1"]
        dev.request("suspend")
        if when == "before the hop":
            qmp("set_link", name="net1", up=False)
        hop()
        if when == "after the hop":
            qmp("set_link", name="net1", up=False)
        try:
            require(is_up(end), "the link is down while suspended")
            dev.request("resume")
            wait_for(lambda: not is_up(end), "the link is down", 5 * PROMPT)
        finally:
            qmp("set_link", name="net1", up=True)
        wait_for(lambda: is_up(end), "the link is up", 5 * PROMPT)
        reach_each_other(ends)
        no_violations()


@case("a hop while a suspend waits for requests: it succeeds in the other QEMU")
def waiting():
    limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    with extended("virtio_blk") as devices:
        disk = devices["disk0"]
        path = path_of(disk)
        disk.write("timeout_ms", "120000")
        # So few requests a second that they take longer than all of this.
        limits |= {"id": status()["devices"]["disk0"]["path"], "iops": 1}
        ask("qmp", command="block_set_io_throttle", arguments=limits)
        readers = [Child(read_block, path, number) for number in range(60)]
        wait_for(lambda: in_flight(path) > 30, "requests are with the device", 10 * PROMPT)
        suspend = Child(disk.request, "suspend")
        wait_for(lambda: disk.state == "suspending", "it is suspending")
        with judged(virtio_blk=1):
            require("disk0" not in suspended(), "QEMU has suspended it with requests in process")
            expect(suspend.poll(), None, "the suspend's status")
            hop()
            expect(suspend.errno(20 * PROMPT, "the suspend ends"), "success", "the suspend")
            expect(suspended(), {"disk0"}, "what is suspended, says QEMU")
            disk.request("resume")
        for reader in readers:
            expect(reader.errno(20 * PROMPT, "a reader ends"), "success", "a reader")
        no_failures(devices)


def read_block(path, number):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as buffer:
        require(os.preadv(fd, [buffer], number * BLOCK) == BLOCK, "a short read")


def in_flight(path):
    name = os.path.basename(path)
    with open(f"/sys/block/{name}/inflight", encoding="ascii") as file:
        return sum(map(int, file.read().split()))


@case("a snapshot of a guest whose devices are suspended: they are, when it is loaded")
def snapshot():
    with extended(*EXTENDED) as devices, cable(devices) as ends:
        flow = stream(ends)
        # The other disk is not in the snapshot.
        with load_on(devices, ["disk1"]):
            suspend_all(devices)
            if ask("save") == "saved":
                resume_all(devices)
                flow.moves()
                no_violations()
                # Whoever asked to save gets the answer.
                ask("load")
            expect(suspended(), set(devices), "what is suspended in the snapshot")
            for name, dev in devices.items():
                expect(dev.state, "suspended", f"state of {name}")
            resume_all(devices)
        flow.finish()
        no_failures(devices)
        no_violations()


@case("a snapshot of a guest whose devices run, loaded while they are suspended: they run")
def snapshot_running():
    with extended(*EXTENDED) as devices, cable(devices) as ends:
        flow = stream(ends)
        with load_on(devices, ["disk1"]):
            counts = devices["disk1"].counts()
            if ask("save") == "saved":
                suspend_all(devices)
                ask("load")
            expect(suspended(), set(), "what is suspended in the snapshot")
            expect(devices["disk1"].counts(), counts, "counts of disk1")
            flow.moves()
            suspend_all(devices)
            resume_all(devices)
        flow.finish()
        no_failures(devices)
        no_violations()


@case("a device that needs a reset when it is resumed: EIO, and it is reset, and runs")
def needs_reset():
    with extended("virtio_blk") as devices:
        disk = devices["disk0"]
        with load_on(devices, ["disk1"]):
            disk.request("suspend")
            packed = disk.queues()[0]["layout"] != "split"
            no_violations()
            # The host writes into the guest's memory. QEMU finds that when it looks for buffers.
            ask("corrupt", device="disk0", queue=0, packed=packed)
            try:
                disk.request("resume")
            except OSError as error:
                expect(os.strerror(error.errno), "Input/output error", "the resume")
            else:
                raise Fail("a device that is broken was resumed")
            wait_for(lambda: disk.state == "running", "it runs", 5 * PROMPT)
            expect(disk.number("recoveries"), 1, "recoveries")
            disk.request("suspend")
            expect(suspended(), {"disk0"}, "what is suspended, says QEMU")
            disk.request("resume")
        # QEMU's judge can't know who wrote there, and begins anew after a hop.
        expect(status()["devices"]["disk0"]["violations"]["buffer"], 1, "buffers by the judge")
        ask("hop")
        no_violations()


if __name__ == "__main__":
    run()
