# SPDX-License-Identifier: GPL-2.0
"""What the tests of virtio_input have in common: input devices of the test device, and their events."""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import time

from suspend_lib import (
    OFFER,
    PROMPT,
    Modules,
    Skip,
    devices,
    expect,
    require,
    wait_for,
)

# From linux/input-event-codes.h.
EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_MSC = range(5)
EV_LED, EV_SND, EV_REP = 0x11, 0x12, 0x14
SYN, SYN_DROPPED = (EV_SYN, 0, 0), 3
KEY_A, KEY_S = 30, 31
REL_Y = 1
MSC_SCAN, MSC_TIMESTAMP = 4, 5
LED_NUML, LED_CAPSL, LED_SCROLLL = range(3)
SND_BELL = 1
REP_DELAY, REP_PERIOD = range(2)

# Type and value of a key that the core has repeat, in a frame of its own.
REPEATS = (EV_KEY, 2)

# From linux/input.h.
EVENT = struct.Struct("llHHi")
EVIOCGRAB = 0x40044590


class Node:
    """The input device that programs see, open."""

    def __init__(self, sysfs):
        name = next(path.name for path in sysfs.glob("event*"))
        self.fd = os.open(f"/dev/input/{name}", os.O_RDWR | os.O_NONBLOCK)
        # What is typed is for nobody else.
        fcntl.ioctl(self.fd, EVIOCGRAB, 1)

    def read(self):
        """What the device has reported, without the times.

        Neither what has been sent to it, nor that the core has keys repeat.
        """
        data = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                data += os.read(self.fd, 1024 * EVENT.size)
        found = [event[2:] for event in EVENT.iter_unpack(data)]
        require((EV_SYN, SYN_DROPPED, 0) not in found, "the test reads too slowly")
        reported = []
        for before, event in zip([None, *found], found):
            is_repeat = REPEATS in (event[::2], before and before[::2])
            if not is_repeat and event[0] not in (EV_LED, EV_SND, EV_REP):
                reported.append(event)
        return reported

    def expect(self, events, what, within=PROMPT):
        """These are the next events, and so far there are no others."""
        got = []
        end = time.monotonic() + within
        while len(got) < len(events) and time.monotonic() < end:
            select.select([self.fd], [], [], 0.1)
            got += self.read()
        expect(got, events, what)

    def write(self, kind, code, value):
        os.write(self.fd, EVENT.pack(0, 0, kind, code, value))


class Target:
    """An input device of the test device."""

    def __init__(self, dev):
        self.dev = dev
        self.mailbox = dev.need_mailbox()

    @property
    def sysfs(self):
        return wait_for(
            lambda: next(
                (p for p in self.dev.path.glob("input/input*") if list(p.glob("event*"))), None
            ),
            "the input device is there",
        )

    @contextlib.contextmanager
    def node(self):
        node = Node(self.sysfs)
        try:
            yield node
        finally:
            os.close(node.fd)

    def report(self):
        return self.mailbox.command("device")["device"]

    def change(self, **change):
        self.mailbox.command("device", set=change)

    def inject(self, *events):
        self.change(inject=events)

    def states(self):
        """What the device has been told to show, by type and code."""
        return {(kind, code): value for kind, code, value in self.report()["states"]}

    def shows(self, kind, code, value):
        wait_for(lambda: self.states().get((kind, code)) == value, f"{kind} {code} is {value}")

    def is_idle(self):
        return self.report()["waiting"] == 0

    @contextlib.contextmanager
    def like(self, *items):
        """The device tells these, by selection, with a size; its driver finds them at its probe."""
        try:
            self.change(items=items)
            yield
        finally:
            self.change(default_items=None)
            self.dev.rebind()


def target(revision=None):
    found = [dev for dev in devices() if dev.driver == Modules.INPUT]
    if not found:
        raise Skip("no input device")
    dev = found[0]
    if revision and dev.read("revision") != revision:
        dev.configure(offer=OFFER[revision])
    return Target(dev)


def press(node, aim, key, value):
    aim.inject((EV_KEY, key, value), SYN)
    node.expect([(EV_KEY, key, value), SYN], f"key {key} is {value}")


def works(aim):
    """A key is pressed and released."""
    with aim.node() as node:
        press(node, aim, KEY_S, 1)
        press(node, aim, KEY_S, 0)


def load_evdev():
    """Without it no program sees an input device."""
    subprocess.run(["modprobe", "evdev"], capture_output=True, check=False)
