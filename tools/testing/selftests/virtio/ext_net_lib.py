# SPDX-License-Identifier: GPL-2.0
"""What the tests of virtio_suspend with the kernel's own virtio_net have in common.

    with network() as (one, other):
        one.device.request("suspend")

Two network namespaces, joined by two test devices on a cable, whose drivers were bound after the
extension was loaded.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path

from ext_lib import drivers, load
from net_lib import INTERFACE, cable, enter, inside
from suspend_lib import (
    BUS,
    PROMPT,
    TIMEOUT_MS,
    Child,
    Device,
    Fail,
    Mailbox,
    Skip,
    expect,
    require,
    sh,
    wait_for,
)

PORT = 7
# Of the stream that is verified, in bytes.
CHUNK = 1 << 16


# Of /proc/net/if_inet6.
IFA_F_TENTATIVE = 0x40


def is_tentative(end):
    """Whether an address of IPv6 is looked for elsewhere, before it is used."""
    with inside(end.namespace):
        lines = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
    return any(int(line.split()[4], 16) & IFA_F_TENTATIVE for line in lines)


@contextlib.contextmanager
def network(**settings):
    """The two ends of a cable, whose drivers were bound after the extension was loaded.

    The devices have these settings.
    """
    with drivers("virtio_net") as driver:
        boxes = [Mailbox.of((BUS / name).resolve().parent) for name in driver.functions()]
        if any([box.set(**settings) for box in boxes]):
            # From their next reset on.
            driver.load()
            driver.devices()
            driver.unload()
        load()
        driver.load()
        ends = cable()
        for end in ends:
            end.device = Device(end.name)
            end.device.write("timeout_ms", str(TIMEOUT_MS))
            # An address that is looked for elsewhere first does not look the same afterwards.
            wait_for(lambda: not is_tentative(end), "the addresses are valid", 5 * PROMPT)
        try:
            yield ends
        finally:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.device.request("resume")
                end.tear_down()
            # The interfaces come back from their namespaces, or go with them.
            time.sleep(0.2)


def visible(end):
    """What can be seen while the device is suspended, and is to be the same then."""
    # The link last: ip takes its family for that of what follows.
    (addresses,), routes, neighbours, (link,) = end.ask(
        ("address", "show", "dev", INTERFACE),
        ("route", "show", "table", "all"),
        ("neighbour", "show"),
        ("link", "show", INTERFACE),
    )
    # How long they are valid yet.
    changing = ("valid_life_time", "preferred_life_time", "expires")

    def lasting(entries):
        return [{k: v for k, v in entry.items() if k not in changing} for entry in entries]

    return {
        "link": link,
        "addresses": lasting(addresses["addr_info"]),
        "routes": lasting(routes),
        "neighbours": [
            {k: v for k, v in n.items() if k in ("dst", "dev", "lladdr")} for n in neighbours
        ],
    }


def configuration(end):
    """All that is to be the same after a suspend."""
    options = ("-k", "-l", "-g", "-c", "-i", "-a")
    return visible(end) | {
        "ethtool": {o: end.run("ethtool", o, INTERFACE, check=False) for o in options},
        "speed": end.run("ethtool", INTERFACE),
    }


def differences(before, after):
    return {k: (before[k], after[k]) for k in before if before[k] != after[k]}


def numbers(first):
    """A chunk of the stream: numbers in ascending order."""
    return struct.pack(f"<{CHUNK // 8}Q", *range(first, first + CHUNK // 8))


class Stream:
    """A TCP connection from one end to the other, over which a child sends and another verifies."""

    def __init__(self, one, other):
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        self._progress = reader
        self._receiver = Child(self._receive, other, writer)
        os.close(writer)
        require(os.read(reader, 1) == b"l", "the receiver does not listen")
        self._sender = Child(self._send, one, other)
        self.bytes = 0

    @staticmethod
    def _receive(end, progress):
        enter(end.namespace)
        with socket.create_server((end.address, PORT)) as server:
            os.write(progress, b"l")
            connection = server.accept()[0]
        chunk = 0
        with connection.makefile("rb") as stream:
            while data := stream.read(CHUNK):
                if data != numbers(chunk * CHUNK // 8)[: len(data)]:
                    os._exit(200)
                chunk += 1
                os.write(progress, b"c")

    @staticmethod
    def _send(end, other):
        over = []
        signal.signal(signal.SIGTERM, lambda *_: over.append(True))
        enter(end.namespace)
        with socket.create_connection((other.address, PORT)) as connection:
            chunk = 0
            while not over:
                connection.sendall(numbers(chunk * CHUNK // 8))
                chunk += 1

    def moves(self):
        """Waits until some more has been verified."""
        ready = select.select([self._progress], [], [], 20 * PROMPT)[0]
        require(ready, "nothing comes through")
        data = os.read(self._progress, 1 << 16)
        require(data, f"the receiver ended, with {self._receiver.poll()}")
        self.bytes += len(data) * CHUNK

    def finish(self):
        """Ends the stream; all that was sent has to have been received."""
        require(self._sender.poll() is None, f"the sender ended, with {self._sender.status}")
        self._sender.signal(signal.SIGTERM)
        while data := os.read(self._progress, 1 << 16):
            self.bytes += len(data) * CHUNK
        expect(self._sender.wait(20 * PROMPT, "the sender ends"), 0, "the sender's status")
        expect(self._receiver.wait(20 * PROMPT, "the receiver ends"), 0, "the receiver's status")
        os.close(self._progress)


def has_module(name):
    try:
        sh("modprobe", name)
    except Fail:
        raise Skip(f"the kernel has no {name}") from None


def need_disciplines(end):
    """Skips a case on a kernel that has one queueing discipline and no other."""
    try:
        end.run("tc", "qdisc", "replace", "dev", INTERFACE, "root", "pfifo")
    except Fail:
        raise Skip("the kernel has no queueing disciplines to choose from") from None
    end.run("tc", "qdisc", "delete", "dev", INTERFACE, "root")


def waiting(end):
    """How many packets wait in the queueing disciplines of an end."""
    disciplines = json.loads(end.run("tc", "-s", "-j", "qdisc", "show", "dev", INTERFACE))
    # An mq counts what is in those below it.
    return sum(one.get("qlen", 0) for one in disciplines if one["kind"] != "mq")


def in_child(end, function, *arguments):
    """Runs a function in the namespace of an end; returns the name of the error it ended with."""

    def body():
        enter(end.namespace)
        function(*arguments)

    return Child(body).errno(5 * PROMPT)


@contextlib.contextmanager
def udp_at(end, port):
    """A socket of this process in the namespace of an end."""
    with inside(end.namespace):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with udp:
        udp.bind((end.address, port))
        yield udp


class Holder:
    """A child in the namespace of an end that has what a function returned, until it is killed."""

    def __init__(self, end, function):
        reader, writer = os.pipe()

        def body():
            enter(end.namespace)
            kept = function()
            os.write(writer, b"r")
            while kept is not None:
                time.sleep(1)

        self._child = Child(body)
        os.close(writer)
        ready = os.read(reader, 1)
        os.close(reader)
        if not ready:
            raise Fail(f"the holder ended: {self._child.errno()}")

    def kill(self):
        self._child.kill()
        self._child.wait(5 * PROMPT)


def dropped(end):
    """What the driver could not put into a virtqueue, and has dropped."""
    return end.transmit_errors()["fifo"]
