#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The sample that sends frames back, at the other end of a cable: what a driver has to be able to
do with buffers of several parts, on two virtqueues, that it polls.
"""

import contextlib
import os
import random
import select
import socket
import struct
import time
from pathlib import Path

from net_lib import DRIVER, INTERFACE, F, cable, inside, is_up
from suspend_lib import (
    PROMPT,
    SLOWNESS,
    SUSPENDED,
    Child,
    Device,
    KernelLog,
    case,
    expect,
    modules,
    require,
    run,
    wait_for,
)

# The sample's MAX_MTU, and how many frames it has buffers for.
MAX_MTU, MAX_FRAMES = 9000, 64
# IEEE Std 802 - Local Experimental Ethertype 1.
ETHERTYPE = 0x88B5
ETHERNET = struct.Struct("!6s6sH")
HEADER = ETHERNET.size
# Which Python has no name for.
SO_RCVBUFFORCE = 33
# As the sample makes addresses.
STATION = struct.Struct("!4sH")
GROUP = b"\x03STA\xff\xff"
# So many that a command has whole pages of them, and one that begins on a page and ends on the next.
STATIONS = 1000
# The smallest frame, and those with so many pages.
LENGTHS = (HEADER, 60, 1514, 4095, 4096, 4097, 8192, 8193, MAX_MTU + HEADER)


class Reflector:
    """The driver at one end, and a socket that sends it frames from the other one."""

    def __init__(self, near, far):
        self.near, self.far = near, far
        self.dev = Device(far.name)
        self.mac = bytes.fromhex(far.report()["filter"]["mac"].replace(":", ""))
        with inside(near.namespace):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.bind((INTERFACE, ETHERTYPE))
            # Room for all that is under way, if nobody reads for a while.
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)
        self.own = self.socket.getsockname()[4]
        self.random = random.Random(1)

    def frame(self, length, to=None):
        payload = self.random.randbytes(length - HEADER)
        return ETHERNET.pack(to or self.mac, self.own, ETHERTYPE) + payload

    def answer_to(self, frame):
        return ETHERNET.pack(self.own, frame[:6], ETHERTYPE) + frame[HEADER:]

    def send(self, frame):
        expect(self.socket.send(frame), len(frame), "bytes sent")

    def receive(self, within=PROMPT):
        """The next frame that comes back, None if none does."""
        if not select.select([self.socket], [], [], within)[0]:
            return None
        return self.socket.recv(MAX_MTU + HEADER + 1)

    def reflects(self, length=60):
        """A frame of that length comes back."""
        frame = self.frame(length)
        self.send(frame)
        answer = self.receive()
        require(answer is not None, f"a frame of {length} bytes did not come back")
        require(answer == self.answer_to(frame), f"a frame of {length} bytes is another")
        return answer

    def stream(self, count, window=MAX_FRAMES // 4):
        """Sends frames of any length, some at a time, all of which come back in their order."""
        due = []
        with on_one_processor():
            for number in range(count):
                frame = self.frame(self.random.randrange(60, MAX_MTU + HEADER))
                self.send(frame)
                due.append(self.answer_to(frame))
                if len(due) == window or number == count - 1:
                    for answer in due:
                        self.comes_back(answer, number)
                    due.clear()

    def comes_back(self, answer, number):
        """That frame is the next to come back, of those up to that number."""
        got = self.receive(5 * PROMPT)
        require(got is not None, f"one of the frames up to {number} is lost")
        require(got == answer, f"of the frames up to {number}, one of {len(got)} bytes came when one "
                f"of {len(answer)} was due")  # fmt: skip


@contextlib.contextmanager
def on_one_processor():
    """Each has its own transmit queue, and nobody keeps an order between two of them."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


@contextlib.contextmanager
def reflector(mtu=MAX_MTU, stations=0, **settings):
    """The sample at one end of the cable, the kernel's own driver at the other."""
    near, far = cable()
    before = far.mailbox.info()["settings"]
    near.change(mtu=MAX_MTU)
    far.change(mtu=mtu)
    far.mailbox.set(**settings)
    try:
        _bind(near.name, DRIVER, DRIVER)
        near.tear_down()
        wait_for(lambda: any((near.path / "net").glob("*")), f"{near.name} has an interface")
        near.set_up()
        _unbind(far.name)
        modules.insert(modules.REFLECTOR, f"stations={stations}")
        sample = (far.path / "driver").resolve().name
        expect(sample, modules.REFLECTOR, f"driver of {far.name}")
        wait_for(lambda: is_up(near), f"the link of {near.name} is up", 5 * PROMPT)
        for end in (near, far):
            end.mailbox.clear()
        yield Reflector(near, far)
        for end in (near, far):
            expect(end.mailbox.objections(), [], f"violations on {end.name}")
    finally:
        far.mailbox.set(**before)
        modules.remove(modules.REFLECTOR)
        near.change(mtu=1500)
        far.change(mtu=1500)
        _bind(far.name, None, DRIVER)
        _bind(near.name, DRIVER, DRIVER)


def _unbind(name):
    driver = Path("/sys/bus/virtio/devices", name, "driver")
    (driver / "unbind").write_text(name)


def _bind(name, old, new):
    """Has a device bound anew."""
    if old:
        Path("/sys/bus/virtio/drivers", old, "unbind").write_text(name)
    Path("/sys/bus/virtio/drivers", new, "bind").write_text(name)


@case("frames of any length come back, with the addresses exchanged")
def lengths():
    with reflector() as sample:
        for length in LENGTHS:
            expect(len(sample.reflects(length)), length, "length of what came back")
        expect(sample.far.report()["rx"]["too_long"], 0, "frames without room")


@case("a frame that is not addressed to the driver does not come back")
def not_addressed():
    with reflector() as sample:
        # By a multicast address: the device drops what is for another one.
        before = sample.far.report()["rx"]["packets"]
        sample.send(sample.frame(60, to=b"\xff" * 6))
        wait_for(lambda: sample.far.report()["rx"]["packets"] > before, "it has been received")
        sample.reflects()
        expect(sample.receive(0.1), None, "another frame")


def station(number):
    return STATION.pack(b"\x02STA", number)


@case("a command of bytes and pages that the device reads, and its answer: it knows the stations")
def stations():
    with reflector(stations=STATIONS) as sample:
        def receives():
            return sample.far.report()["filter"]

        wait_for(lambda: receives()["multicast"], "the device has got the command")
        expect(receives()["multicast"], [_text(GROUP)], "what follows the pages")
        expect(receives()["unicast"], [_text(station(number)) for number in range(16)], "the first")
        for number in (0, 681, 682, 683, STATIONS - 1):
            frame = sample.frame(60, to=station(number))
            sample.send(frame)
            answer = sample.receive()
            require(answer is not None, f"station {number} does not answer")
            require(answer == sample.answer_to(frame), f"station {number} answers another frame")
        said = KernelLog()
        sample.dev.rebind()
        wait_for(lambda: receives()["multicast"], "the device has got the command again")
        # It would have said so by now: the frame comes later.
        wait_for(lambda: is_up(sample.near), "the link is up", 5 * PROMPT)
        sample.reflects()
        expect(_refusals(said), 0, "answers that are not what the device has written")
        sample.far.mailbox.set(faults=["used-zero"])
        sample.dev.rebind()
        wait_for(lambda: _refusals(said), "a device that has written no answer is found out")


def _refusals(log):
    return sum("the device does not take the addresses" in line for line in log.lines())


def _text(mac):
    return ":".join(f"{byte:02x}" for byte in mac)


@case("more frames than there are buffers, none lost or out of order")
def stream():
    with reflector() as sample:
        sample.stream(4 * MAX_FRAMES)
        # What else comes, such as what the kernel looks for neighbours with, does not go back.
        expect(sample.far.report()["tx"]["packets"], 4 * MAX_FRAMES, "frames sent back")


@case("a burst is polled: few notifications, {how} EVENT_IDX", how=("with", "without"))
def polled(how):
    with reflector(event_idx=how == "with") as sample:
        # All of them are there at once when the device is resumed.
        frames = [sample.frame(60) for _ in range(MAX_FRAMES // 2)]
        sample.dev.request("suspend")
        for frame in frames:
            sample.send(frame)
        wait_for(lambda: sample.far.report()["waiting"] >= len(frames), "the frames wait")
        sample.far.mailbox.clear()
        sample.dev.request("resume")
        for frame in frames:
            expect(sample.receive() == sample.answer_to(frame), True, "a frame of the burst")
        sent = sum(sample.far.mailbox.counters()["used_notifications"])
        require(sent < len(frames) / 2, f"{sent} notifications of {len(frames)} frames")


@case("nobody waits for what has been sent: the device is to notify when it has used most of it")
def delayed():
    with reflector() as sample:
        frames = [sample.frame(60) for _ in range(12)]
        sample.dev.request("suspend")
        for frame in frames:
            sample.send(frame)
        wait_for(lambda: sample.far.report()["waiting"] >= len(frames), "the frames wait")
        # First those that are received are in process, then those that are sent.
        fault = f"hold-ms={int(500 * SLOWNESS)}"
        sample.far.mailbox.set(faults=[fault])
        sample.dev.request("resume")

        def sending():
            _, transmit, *_ = sample.far.mailbox.stats()["queues"]
            # Not of the next one, which is 0, but of one that it has.
            return 2 <= transmit["wanted_after"] <= transmit["in_process"]

        wait_for(sending, "the device is asked to notify late", 5 * PROMPT)
        for frame in frames:
            expect(sample.receive(5 * PROMPT) == sample.answer_to(frame), True, "a frame")
        require(sample.far.mailbox.happened(fault), "nothing was in process")
        sample.far.mailbox.set(faults=[])
        sample.reflects()


@case("suspended under load, no frame is lost or out of order")
def suspend():
    with reflector() as sample:
        child = Child(sample.stream, 6 * MAX_FRAMES)
        cycles = 0
        while child.poll() is None:
            sample.dev.request("suspend")
            expect(sample.dev.status, SUSPENDED["1.4"], "status")
            before = sample.far.report()["tx"]["packets"]
            time.sleep(0.05)
            expect(sample.far.report()["tx"]["packets"], before, "sent while suspended")
            sample.dev.request("resume")
            cycles += 1
            time.sleep(0.05)
        expect(child.status, 0, "the sender ended with")
        require(cycles > 1, f"suspended {cycles} times")
        expect(sample.dev.number("failures"), 0, "failures")


@case("a device that says to have written more than there is")
def used_long():
    with reflector() as sample:
        sample.far.mailbox.set(faults=["used-long=100000"])
        frame = sample.frame(60)
        sample.send(frame)
        answer = sample.receive()
        require(answer is not None, "the frame did not come back")
        require(sample.far.mailbox.happened("used-long=100000"), "the fault did not happen")
        # All that there is in a buffer: the frame, and what nobody has written.
        expect(len(answer), MAX_MTU + HEADER, "length")
        require(answer[: len(frame)] == sample.answer_to(frame), "the frame is another")
        expect(answer[len(frame) :].count(0), len(answer) - len(frame), "zeroes behind it")


@case("an MTU that the buffers have no room for is not accepted")
def large_mtu():
    with reflector(mtu=MAX_MTU) as sample:
        require(sample.far.has("MTU"), "the MTU was not accepted")
    with reflector(mtu=MAX_MTU + 1) as sample:
        require(not sample.far.has("MTU"), "an MTU of more than that was accepted")
        require(sample.far.has("MAC"), "the address was not accepted")
        sample.reflects(MAX_MTU + HEADER)


@case("the driver goes while frames come, and comes back")
def unbind():
    with reflector() as sample:
        for _ in range(3):
            for _ in range(MAX_FRAMES):
                sample.send(sample.frame(1514))
            sample.dev.rebind()
            wait_for(lambda: is_up(sample.near), "the link is up", 5 * PROMPT)
            while sample.receive(0.2) is not None:
                pass
            sample.reflects()


if __name__ == "__main__":
    run()
