# SPDX-License-Identifier: GPL-2.0
"""What the scripts of the guest share: sysfs, and the mailbox of the test device."""

import json
import mmap
import os
import struct

DEVICES = "/sys/bus/virtio/devices"
DRIVERS = "/sys/bus/virtio/drivers"


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


class Mailbox:
    """Talks to the test device, through BAR 2 of its PCI function (see device/src/mailbox.rs)."""

    def __init__(self, name):
        pci = os.path.realpath(os.path.join(DEVICES, name, ".."))
        fd = os.open(os.path.join(pci, "resource2"), os.O_RDWR | os.O_SYNC)
        try:
            self.bar = mmap.mmap(fd, 0x4000)
        finally:
            os.close(fd)
        if self.bar[:4] != b"DTSV":
            raise OSError(f"{name} is not a test device")

    def _copy_in(self, offset, data):
        # A BAR takes accesses of 1, 2, 4 or 8 bytes.
        for at in range(0, len(data), 4):
            word = data[at:at + 4].ljust(4, b"\0")
            self.bar[offset + at:offset + at + 4] = word

    def _copy_out(self, offset, length):
        return b"".join(self.bar[at:at + 4] for at in range(offset, offset + length, 4))[:length]

    def command(self, cmd, **fields):
        text = json.dumps({"cmd": cmd, **fields}).encode()
        self._copy_in(0x1000, text)
        self._copy_in(0x8, struct.pack("<I", len(text)))
        (length,) = struct.unpack("<I", self._copy_out(0xc, 4))
        reply = json.loads(self._copy_out(0x2000, length))
        if not reply["ok"]:
            raise OSError(f"the device refused {cmd}: {reply['error']}")
        return reply


class Suspendable:
    """A device on the virtio bus that can be suspended."""

    def __init__(self, name):
        self.name = name
        self.path = os.path.join(DEVICES, name)
        self.suspend_dir = os.path.join(self.path, "suspend")
        self.mailbox = Mailbox(name)

    def attribute(self, name):
        return read(os.path.join(self.suspend_dir, name))

    def request(self, what):
        write(os.path.join(self.suspend_dir, "request"), what)


def suspendable_devices():
    return [Suspendable(name) for name in sorted(os.listdir(DEVICES))
            if os.path.isdir(os.path.join(DEVICES, name, "suspend"))]
