#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The last act of `make demo`: a guest with disk and network suspended moves to another QEMU."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "testing/selftests/virtio"))

from qemu_lib import (  # noqa: E402
    cable,
    connect,
    extended,
    hop,
    missing,
    no_violations,
    path_of,
    stream,
    suspended,
)
from sleep_lib import disk_load  # noqa: E402
from suspend_lib import Child, Fail  # noqa: E402


def say(text=""):
    print(text, flush=True)


def check(condition, text):
    if not condition:
        raise Fail(text)
    say(f"  ok: {text}")


def request(devices, goal):
    for dev in devices.values():
        say(f"# echo {goal} >{dev.file('request')}")
        dev.request(goal)


def told():
    """What QEMU says is suspended, in words."""
    return " ".join(sorted(suspended())) or "none"


def show(every):
    devices = {name: every[name] for name in ("disk0", "net1", "net2")}
    with cable(every) as ends:
        connect(every)
        say("\nThe kernel's own virtio_blk and virtio_net, with virtio_suspend.  Four writers read\n"
            "back what they wrote to the disk; TCP flows between two network devices, and each byte\n"
            "is compared:\n")
        flow = stream(ends)
        with disk_load(path_of(devices["disk0"])):
            flow.moves()
            check(True, "I/O and TCP are flowing")
            say("\nSuspend disk and network, under that load:")
            request(devices, "suspend")
            check(suspended() == set(devices), f"QEMU says that these are suspended: {told()}")
            say("\nMove to another QEMU process (migrate):")
            moved = hop()
            check(moved["from"] != moved["to"],
                  f"process {moved['from']} has ended, the guest runs in process {moved['to']}, "
                  f"after {moved['seconds']:.1f} s")
            check(suspended() == set(devices), f"QEMU says that these are suspended: {told()}")
            say("\nResume them there:")
            request(devices, "resume")
            check(not suspended(), f"QEMU says that these are suspended: {told()}")
            flow.moves()
            check(missing() == 0, "the host answers 3 pings of 3")
        check(True, "the writers went on, and found every byte as they had written it")
        flow.finish()
        check(True, f"the connection went on: {flow.bytes} bytes, none lost, none different")
        for name, dev in devices.items():
            check(dev.counts() == (1, 1, 0) and dev.number("recoveries") == 0,
                  f"{name}: suspended and resumed once, no failure, no recovery")
        no_violations()
        check(True, "violations, by QEMU's judge: 0")


def main():
    try:
        with extended("virtio_blk", "virtio_net") as devices:
            show(devices)
    except Fail as failure:
        say(f"  FAILED: {failure}")
        return 1
    finally:
        Child.kill_all()
    say("\nA guest moved, suspended, and nothing was lost.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
