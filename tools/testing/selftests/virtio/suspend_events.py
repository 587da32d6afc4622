#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Who wants to know of a suspend: poll(2) on `state`, uevents, and trace events."""

import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from suspend_lib import (
    PROMPT,
    REVISIONS,
    SUSPENDED,
    Child,
    Skip,
    case,
    device,
    expect,
    expect_errno,
    require,
    run,
)

DELAY_MS = 300
NETLINK_KOBJECT_UEVENT = 15
TRACING = Path("/sys/kernel/tracing")


class Poller:
    """Polls the file `state`."""

    def __init__(self, dev):
        self._fd = os.open(dev.file("state"), os.O_RDONLY)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI | select.POLLERR)
        self.state = self._read()

    def _read(self):
        return os.pread(self._fd, 64, 0).decode().strip()

    def wait(self, within=PROMPT):
        """Waits for a change: the new state, None if there is none in that time."""
        events = self._poll.poll(within * 1000)
        if not events:
            return None
        expect(events[0][1], select.POLLPRI | select.POLLERR, "events")
        return self._read()

    def close(self):
        os.close(self._fd)


@case("{revision}: poll wakes on each change of state", revision=REVISIONS)
def poll(revision):
    dev = device(revision)
    poller = Poller(dev)
    try:
        expect(poller.state, "running", "state")
        expect(poller.wait(0.3), None, "a change though nothing happened")
        for goal, state in (("suspend", "suspended"), ("resume", "running")) * 2:
            dev.request(goal)
            expect(poller.wait(), state, f"state after {goal}")
            expect(poller.wait(0.1), None, "a change though nothing happened")
        expect_errno("EALREADY", "resume", dev.request, "resume")
        expect(poller.wait(0.1), None, "a change though the request failed")
    finally:
        poller.close()


@case("{revision}: poll shows the states in between", revision=REVISIONS)
def poll_between(revision):
    dev = device(revision, mailbox=True)
    dev.mailbox.set(delay_suspend_ms=DELAY_MS, delay_resume_ms=DELAY_MS)
    poller = Poller(dev)
    try:
        for goal, states in (
            ("suspend", ["suspending", "suspended"]),
            ("resume", ["resuming", "running"]),
        ):
            child = Child(dev.request, goal)
            expect([poller.wait(), poller.wait()], states, f"states of {goal}")
            expect(child.errno(), "success", goal)
    finally:
        poller.close()


@case("a failed suspend wakes poll, too")
def poll_failure():
    dev = device("1.4", mailbox=True, recover=0)
    dev.mailbox.set(refuse_suspend=True)
    poller = Poller(dev)
    try:
        expect_errno("EIO", "suspend", dev.request, "suspend")
        expect(poller.wait(), "failed", "state")
    finally:
        poller.close()


class Uevents:
    """Listens to the kernel's uevents of a device."""

    def __init__(self, dev):
        self._path = str(dev.path.resolve()).removeprefix("/sys")
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT
        )
        self._socket.bind((0, 1))

    def get(self, within=PROMPT):
        """The next one as a dictionary, None if none comes in that time."""
        end = time.monotonic() + within
        while True:
            left = max(0, end - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                return None
            _head, *lines = self._socket.recv(65536).decode(errors="replace").split("\0")
            event = dict(line.split("=", 1) for line in lines if "=" in line)
            if event.get("DEVPATH") == self._path:
                return event

    def close(self):
        self._socket.close()


def is_change(event, state, what):
    require(event, f"no uevent of {what}")
    expect(event["ACTION"], "change", f"action of {what}")
    expect(event["SUBSYSTEM"], "virtio", f"subsystem of {what}")
    expect(event.get("VIRTIO_SUSPEND_STATE"), state, f"VIRTIO_SUSPEND_STATE of {what}")


@case("{revision}: a uevent for each suspend and resume", revision=REVISIONS)
def uevents(revision):
    dev = device(revision)
    listener = Uevents(dev)
    try:
        for goal, state in (("suspend", "suspended"), ("resume", "running")) * 2:
            dev.request(goal)
            is_change(listener.get(), state, goal)
        expect(listener.get(0.2), None, "another uevent")
    finally:
        listener.close()


@case("a uevent when a device fails")
def uevent_failed():
    dev = device("1.4", mailbox=True, recover=0)
    dev.mailbox.set(refuse_suspend=True)
    listener = Uevents(dev)
    try:
        expect_errno("EIO", "suspend", dev.request, "suspend")
        is_change(listener.get(), "failed", "suspend")
    finally:
        listener.close()


@case("two uevents when a device fails and is recovered")
def uevent_recovered():
    dev = device("1.4", mailbox=True)
    dev.mailbox.set(refuse_suspend=True)
    listener = Uevents(dev)
    try:
        expect_errno("EIO", "suspend", dev.request, "suspend")
        is_change(listener.get(), "failed", "the failure")
        is_change(listener.get(), "running", "the recovery")
    finally:
        listener.close()


@case("no uevent when a suspend times out: it changed nothing")
def uevent_refused():
    dev = device("draft", mailbox=True)
    dev.mailbox.set(refuse_suspend=True)
    dev.write("timeout_ms", "50")
    listener = Uevents(dev)
    try:
        expect_errno("ETIMEDOUT", "suspend", dev.request, "suspend")
        expect(listener.get(0.3), None, "a uevent")
    finally:
        listener.close()


FLAGS = {
    0x01: "ACKNOWLEDGE",
    0x02: "DRIVER",
    0x04: "DRIVER_OK",
    0x08: "FEATURES_OK",
    0x10: "SUSPEND",
}


def transition(dev, origin, to, error=0):
    return f"virtio_suspend_transition: {dev.name} {origin} -> {to} error={error}"


def access(dev, operation, status):
    flags = "|".join(name for bit, name in FLAGS.items() if status & bit)
    return f"virtio_suspend_status: {dev.name} {operation} 0x{status:02x} {flags}"


def round_trip(dev, revision):
    """What a suspend and a resume of a device that is quick leave in the trace."""
    suspended = SUSPENDED[revision]
    return [
        transition(dev, "running", "suspending"),
        access(dev, "read", 0x0F),
        access(dev, "write", 0x1F),
        access(dev, "read", suspended),
        transition(dev, "suspending", "suspended"),
        transition(dev, "suspended", "resuming"),
        access(dev, "read", suspended),
        access(dev, "write", 0x1F if revision == "1.4" else 0x0F),
        access(dev, "read", 0x0F),
        transition(dev, "resuming", "running"),
    ]


class Trace:
    """An instance of tracefs with our events enabled."""

    def __init__(self):
        if not (TRACING / "events/virtio_suspend").exists():
            raise Skip("tracefs is not there")
        self._path = TRACING / "instances/virtio_suspend_test"
        self._path.mkdir(exist_ok=True)
        (self._path / "trace").write_text("\n")
        (self._path / "events/virtio_suspend/enable").write_text("1\n")

    def events(self, dev):
        return events_of((self._path / "trace").read_text(), dev)

    def close(self):
        (self._path / "events/virtio_suspend/enable").write_text("0\n")
        self._path.rmdir()


def events_of(text, dev):
    """The events, without who and when, of a device."""
    found = []
    for line in text.splitlines():
        event = re.search(r"virtio_suspend_(status|transition): .*", line)
        if event:
            words = event[0].split()
            if words[1] == dev.name:
                found.append(" ".join(words))
    return found


@case("{revision}: trace events of suspend and resume", revision=REVISIONS)
def trace(revision):
    dev = device(revision)
    events = Trace()
    try:
        dev.request("suspend")
        dev.request("resume")
        expect(events.events(dev), round_trip(dev, revision), "events")
    finally:
        events.close()


@case("trace events of a suspend that fails")
def trace_failure():
    dev = device("1.4", mailbox=True, recover=0)
    dev.mailbox.set(refuse_suspend=True)
    events = Trace()
    try:
        expect_errno("EIO", "suspend", dev.request, "suspend")
        expected = [
            transition(dev, "running", "suspending"),
            access(dev, "read", 0x0F),
            access(dev, "write", 0x1F),
            access(dev, "read", 0x4F).replace("FEATURES_OK", "FEATURES_OK|DEVICE_NEEDS_RESET"),
            transition(dev, "suspending", "failed", -5),
        ]
        expect(events.events(dev), expected, "events")
    finally:
        events.close()


@case("trace-cmd records and understands the events")
def trace_cmd():
    if not shutil.which("trace-cmd"):
        raise Skip("trace-cmd is not installed")
    dev = device()
    with tempfile.TemporaryDirectory() as directory:
        data = f"{directory}/trace.dat"
        request = dev.file("request")
        script = f"echo suspend >{request}; echo resume >{request}"
        subprocess.run(
            ["trace-cmd", "record", "-q", "-e", "virtio_suspend", "-o", data, "sh", "-c", script],
            check=True, capture_output=True, timeout=30,
        )
        report = subprocess.run(
            ["trace-cmd", "report", "-i", data],
            check=True, capture_output=True, text=True, timeout=30,
        )
    expected = round_trip(dev, dev.read("revision"))
    expect(events_of(report.stdout, dev), expected, "events in the report")


if __name__ == "__main__":
    run()
