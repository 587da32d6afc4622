#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The guest's side of `make bench`: suspend and resume against unbind and bind, in turn."""

import json
import os
import subprocess
import sys
import time

from testdevice import suspendable_devices, write

WARM_UP = 2
PAIRS = 25


def timed(action):
    start = time.monotonic_ns()
    action()
    return time.monotonic_ns() - start


def measure(device):
    revision = device.attribute("revision")
    driver = os.path.realpath(os.path.join(device.path, "driver"))

    def suspend_resume():
        device.request("suspend")
        device.request("resume")

    def unbind_bind():
        write(os.path.join(driver, "unbind"), device.name)
        write(os.path.join(driver, "bind"), device.name)

    pairs, suspends, resumes = [], [], []
    for number in range(WARM_UP + PAIRS):
        # The order alternates, so that neither profits from what the other left in the caches.
        first, second = (suspend_resume, unbind_bind)[::1 if number % 2 else -1]
        times = {first: timed(first), second: timed(second)}
        # A bind starts the attributes anew.
        if first is unbind_bind:
            suspend_ns, resume_ns = (int(device.attribute(f"last_{what}_ns"))
                                     for what in ("suspend", "resume"))
        if number < WARM_UP:
            continue
        pairs.append({"suspend_resume_ns": times[suspend_resume],
                      "unbind_bind_ns": times[unbind_bind]})
        if first is unbind_bind:
            suspends.append(suspend_ns)
            resumes.append(resume_ns)
    device.mailbox.command("clear")
    suspend_resume()
    counters = device.mailbox.command("stats")["counters"]
    print("BENCH " + json.dumps({
        "revision": revision,
        "pairs": pairs,
        "suspend_ns": suspends,
        "resume_ns": resumes,
        "status_writes": counters["status_writes"],
        "status_reads": counters["status_reads"],
    }), flush=True)


def main():
    subprocess.run(["modprobe", "virtio_rng"], check=True)
    devices = suspendable_devices()
    if not devices:
        print("no device can be suspended")
        return 1
    for device in devices:
        print(f"measuring {device.name}: {PAIRS} pairs", flush=True)
        measure(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
