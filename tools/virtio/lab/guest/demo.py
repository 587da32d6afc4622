#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The guest's side of `make demo`: suspends devices under I/O, and explains what happens."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "testing/selftests/virtio"))

from blk_lib import Disk, statistics  # noqa: E402
from suspend_lib import BUS, HWRNG, HWRNG_CLASS, Device, Fail, read_some, rng_names  # noqa: E402
from suspend_stream import BLOCK, Account  # noqa: E402

FIO = ("fio --name=demo --filename={} --direct=1 --ioengine=libaio --rw=randrw --bs=4k --iodepth=16 "
       "--size=16M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --time_based --runtime=6 "
       "--thread --eta=never --output-format=json --output=/tmp/fio.json")
ATTRIBUTES = ("state", "revision", "suspends", "resumes", "failures",
              "last_suspend_ns", "last_resume_ns")

failures = []


def say(text=""):
    print(text, flush=True)


def check(condition, text):
    say(f"  {'ok' if condition else 'FAILED'}: {text}")
    if not condition:
        failures.append(text)


def shell(command):
    """Runs a command that the reader could have typed."""
    say(f"# {command}")
    result = subprocess.run(["sh", "-c", command], check=False)
    if result.returncode:
        failures.append(command)


def suspend_file(device, name, text=None):
    path = device.file(name)
    if text is None:
        say(f"# cat {path}\n{device.read(name)}")
    else:
        say(f"# echo {text} >{path}")
        device.write(name, text)


class Reader(threading.Thread):
    """Reads /dev/hwrng without pause, and accounts for every word of the device's counter."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes = 0
        self.account = Account()
        self.stopping = False

    def run(self):
        with open(HWRNG, "rb", buffering=0) as file:
            while not self.stopping:
                data = file.read(BLOCK)
                self.account.add(data)
                self.bytes += len(data)

    def problem(self):
        """What is wrong with what was read; None if nothing is."""
        self.stopping = True
        self.join(5)
        try:
            self.account.check()
        except Fail as failure:
            return str(failure)
        return None

    def grows(self, seconds=0.5):
        before = self.bytes
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.bytes == before:
            time.sleep(0.01)
        return self.bytes > before

    def settles(self, patience=10):
        """Waits until what was received before the suspend is read."""
        end = time.monotonic() + patience
        while time.monotonic() < end and self.grows():
            pass


def hwrng_of(device):
    """The name under which the device's driver has registered with the hwrng core."""
    names = [path.parent.name for path in suspendable()]
    return rng_names()[names.index(device.name)]


def suspendable():
    return sorted(BUS.glob("*/suspend"))


def show(device):
    revision = device.read("revision")
    say(f"\n=== {device.name}: SUSPEND as of {revision} ===\n")
    suspend_file(device, "state")
    shell(f"echo {hwrng_of(device)} >{HWRNG_CLASS}/rng_current; cat {HWRNG_CLASS}/rng_current")
    say("\nA reader takes entropy all the time.  What this device sends is a counter: a byte lost\n"
        "or sent twice would show.")
    reader = Reader()
    reader.start()
    check(reader.grows(5), "entropy is flowing")

    say("\nSuspend it, under that load:")
    device.mailbox.clear()
    suspend_file(device, "request", "suspend")
    suspend_file(device, "state")
    reader.settles()
    check(not reader.grows(1.0), "the reader is blocked")
    check(not read_some(4), "a read with O_NONBLOCK gets EAGAIN")

    say("\nResume it:")
    suspend_file(device, "request", "resume")
    suspend_file(device, "state")
    check(reader.grows(5), "the reader goes on")
    problem = reader.problem()
    check(not problem, f"{reader.bytes} bytes read, " + (problem or "no gap and nothing twice"))

    show_status(device)


def show_status(device):
    say("\nThe status byte, as the device saw it:")
    stats = device.mailbox.stats()
    presented = stats["counters"]["presented"]
    say("  presented  " + " -> ".join(presented))
    say("  accessed   " + " ".join(stats["status_log"]) + "   (w: written, r: read)")
    suspended = "0x1b" if device.read("revision") == "1.4" else "0x1f"
    check(presented[-3:] == ["0x0f", suspended, "0x0f"], f"0x0f -> {suspended} -> 0x0f")
    check(stats["violations"] == 0, "violations: 0")

    say("")
    for name in ATTRIBUTES:
        say(f"  {name:16} {device.read(name)}")


def carried_out(disk):
    """The reads and writes that the device has carried out."""
    return disk.requests("in") + disk.requests("out")


def made(disk):
    """Those that the guest has made."""
    return sum(count for count, _ in statistics(disk).values())


def still(count, seconds=1.0):
    """Whether a count stays what it is for a while."""
    before = count()
    time.sleep(seconds)
    return count() == before


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.01)
    return condition()


def show_disk(device):
    say(f"\n=== {device.name}: a disk, SUSPEND as of {device.read('revision')} ===\n")
    disk = Disk(device)
    device.mailbox.clear()
    before = made(disk)
    command = FIO.format(disk.path)
    say("fio writes, reads back and compares checksums, 16 requests at a time:")
    say(f"# {command} &")
    with subprocess.Popen(command.split()) as fio:
        begun = wait_until(lambda: carried_out(disk) > 100 or fio.poll() is not None)
        check(begun and fio.poll() is None, "I/O is flowing")

        say("\nSuspend it, under that load:")
        suspend_file(device, "request", "suspend")
        suspend_file(device, "state")
        check(still(lambda: carried_out(disk)), "the device carries out nothing for a second")

        say("\nResume it:")
        suspend_file(device, "request", "resume")
        suspend_file(device, "state")
        done = carried_out(disk)
        check(wait_until(lambda: carried_out(disk) > done), "I/O goes on")
        check(fio.wait(60) == 0, "fio ends without an error")
    with open("/tmp/fio.json", encoding="utf-8") as file:
        text = file.read()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    check(job["error"] == 0 and job["write"]["total_ios"] > 0,
          f"{job['write']['total_ios']} blocks written, {job['read']['total_ios']} read and compared, "
          "none different")
    counted = made(disk) - before
    check(counted == carried_out(disk),
          f"the guest made {counted} requests, the device carried out {carried_out(disk)}")
    show_status(device)


def main():
    say("\nThe guest is up.  Its kernel is Debian's own, unmodified:\n")
    shell("uname -r")
    say("\nLoad the modules; they bind to the devices in place of the kernel's own driver:\n")
    shell("modprobe virtio_rng; lsmod | grep virtio_rng")
    devices = [Device(path.parent.name) for path in suspendable()]
    check(len(devices) == 2, f"{len(devices)} devices can be suspended")
    for device in devices:
        show(device)
    suspended = [device.name for device in devices]
    say("")
    shell("modprobe virtio_blk; lsblk -dn -o NAME,SIZE")
    names = [path.parent.name for path in suspendable()]
    disks = [Device(name) for name in names if name not in suspended]
    check(len(disks) == 1, f"{len(disks)} disk can be suspended")
    for device in disks:
        show_disk(device)
    say("")
    if failures:
        say(f"{len(failures)} checks failed:")
        for text in failures:
            say(f"  {text}")
        return 1
    say("Suspended, resumed, data flowing, nothing lost.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
