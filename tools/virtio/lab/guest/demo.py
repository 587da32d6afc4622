#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The guest's side of `make demo`: suspends devices under I/O, and explains what happens."""

import json
import os
import struct
import subprocess
import sys
import threading
import time

from testdevice import Suspendable, read, suspendable_devices, write

HWRNG = "/dev/hwrng"
MISC = "/sys/class/misc/hw_random"
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
    path = os.path.join(device.suspend_dir, name)
    if text is None:
        say(f"# cat {path}\n{read(path)}")
    else:
        say(f"# echo {text} >{path}")
        write(path, text)


class Reader(threading.Thread):
    """Reads /dev/hwrng without pause and checks that the device's counter has no gap."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes = 0
        self.gaps = 0
        self.expected = None
        self.stopping = False

    def run(self):
        with open(HWRNG, "rb", buffering=0) as file:
            while not self.stopping:
                data = file.read(64)
                for (word,) in struct.iter_unpack("<I", data[:len(data) & ~3]):
                    if self.expected is not None and word != self.expected:
                        self.gaps += 1
                    self.expected = (word + 1) & 0xffffffff
                self.bytes += len(data)

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


def readable():
    """Whether a read that must not block gets anything."""
    fd = os.open(HWRNG, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return bool(os.read(fd, 4))
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def hwrng_of(device):
    """The name under which the device's driver has registered with the hwrng core."""
    number = suspendable_names().index(device.name)
    names = [name for name in read(f"{MISC}/rng_available").split() if "virtio" in name]
    return names[number]


def suspendable_names():
    return [device.name for device in suspendable_devices()]


def show(device: Suspendable):
    revision = device.attribute("revision")
    say(f"\n=== {device.name}: SUSPEND as of {revision} ===\n")
    suspend_file(device, "state")
    shell(f"echo {hwrng_of(device)} >{MISC}/rng_current; cat {MISC}/rng_current")
    say("\nA reader takes entropy all the time.  What this device sends is a counter: a byte lost\n"
        "or sent twice would show.")
    reader = Reader()
    reader.start()
    check(reader.grows(5), "entropy is flowing")

    say("\nSuspend it, under that load:")
    device.mailbox.command("clear")
    suspend_file(device, "request", "suspend")
    suspend_file(device, "state")
    reader.settles()
    check(not reader.grows(1.0), "the reader is blocked")
    check(not readable(), "a read with O_NONBLOCK gets EAGAIN")

    say("\nResume it:")
    suspend_file(device, "request", "resume")
    suspend_file(device, "state")
    check(reader.grows(5), "the reader goes on")
    check(reader.gaps == 0, f"{reader.bytes} bytes read, no gap and nothing twice")
    reader.stopping = True
    reader.join(5)

    show_status(device)


def show_status(device):
    say("\nThe status byte, as the device saw it:")
    stats = device.mailbox.command("stats")
    presented = stats["counters"]["presented"]
    say("  presented  " + " -> ".join(presented))
    say("  accessed   " + " ".join(stats["status_log"]) + "   (w: written, r: read)")
    suspended = "0x1b" if device.attribute("revision") == "1.4" else "0x1f"
    check(presented[-3:] == ["0x0f", suspended, "0x0f"], f"0x0f -> {suspended} -> 0x0f")
    check(stats["violations"] == 0, "violations: 0")

    say("")
    for name in ATTRIBUTES:
        say(f"  {name:16} {device.attribute(name)}")


def requests(device):
    """The reads and writes that the device has carried out."""
    counts = device.mailbox.command("device")["device"]["requests"]
    return sum(counts.get(kind, {}).get("ok", 0) for kind in ("in", "out"))


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
    say(f"\n=== {device.name}: a disk, SUSPEND as of {device.attribute('revision')} ===\n")
    name = os.listdir(os.path.join(device.path, "block"))[0]
    stat = f"/sys/block/{name}/stat"
    device.mailbox.command("clear")
    before = read(stat).split()
    command = FIO.format(f"/dev/{name}")
    say("fio writes, reads back and compares checksums, 16 requests at a time:")
    say(f"# {command} &")
    with subprocess.Popen(command.split()) as fio:
        begun = wait_until(lambda: requests(device) > 100 or fio.poll() is not None)
        check(begun and fio.poll() is None, "I/O is flowing")

        say("\nSuspend it, under that load:")
        suspend_file(device, "request", "suspend")
        suspend_file(device, "state")
        check(still(lambda: requests(device)), "the device carries out nothing for a second")

        say("\nResume it:")
        suspend_file(device, "request", "resume")
        suspend_file(device, "state")
        done = requests(device)
        check(wait_until(lambda: requests(device) > done), "I/O goes on")
        check(fio.wait(60) == 0, "fio ends without an error")
    with open("/tmp/fio.json", encoding="utf-8") as file:
        text = file.read()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    check(job["error"] == 0 and job["write"]["total_ios"] > 0,
          f"{job['write']['total_ios']} blocks written, {job['read']['total_ios']} read and compared, "
          "none different")
    after = read(stat).split()
    counted = sum(int(after[field]) - int(before[field]) for field in (0, 4))
    check(counted == requests(device),
          f"the guest made {counted} requests, the device carried out {requests(device)}")
    show_status(device)


def main():
    say("\nThe guest is up.  Its kernel is Debian's own, unmodified:\n")
    shell("uname -r")
    say("\nLoad the modules; they bind to the devices in place of the kernel's own driver:\n")
    shell("modprobe virtio_rng; lsmod | grep virtio_rng")
    devices = suspendable_devices()
    check(len(devices) == 2, f"{len(devices)} devices can be suspended")
    for device in devices:
        show(device)
    suspended = [device.name for device in devices]
    say("")
    shell("modprobe virtio_blk; lsblk -dn -o NAME,SIZE")
    disks = [device for device in suspendable_devices() if device.name not in suspended]
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
