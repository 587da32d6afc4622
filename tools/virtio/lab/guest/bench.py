#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The guest's side of `make bench`: measures what it is asked for by name, and hands over samples.

What is compared is measured in turn, in one guest and on one device. A sample is a ratio of two
measurements that follow each other, so what changes slowly does not matter.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import mmap
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "testing/selftests/virtio"))

import ext_lib  # noqa: E402
import net_lib  # noqa: E402
import sleep_lib  # noqa: E402
from suspend_lib import BUS, Device, Modules, sh, wait_for  # noqa: E402

BLOCK, NET = "virtio_blk", "virtio_net"
# Access, size of a block, requests at a time, jobs: one request after another, and many.
SINGLE = [("randread", "4k", 1, 1), ("randwrite", "4k", 1, 1)]
MANY = [
    *((access, "4k", depth, jobs)
      for access in ("randread", "randwrite") for depth, jobs in ((1, 4), (32, 1), (32, 4))),
    ("read", "128k", 8, 1),
    ("write", "128k", 8, 1),
]
# What the extension is tried with: one request at a time, and many.
EXTENSION_JOBS = [("randread", "4k", 1, 1), ("randread", "4k", 32, 1)]
# Seconds: of fio before it is measured, of the measurement, and of one where the processor is never
# idle and its clock counts instructions, which takes ten to twenty times as long.
SETTLE, WINDOW, WINDOW_BUSY = 0.2, 1.0, 0.4
# A measurement is the median of so many: where one request is made at a time, the device answers
# now before and now after the processor has become idle, for many requests in turn.
SLICES = 16
IPERF_SECONDS = 1
PATIENCE = 20.0
TRACING = Path("/sys/kernel/tracing")
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def emit(kind, **fields):
    print("BENCH " + json.dumps({kind: fields}), flush=True)


def figure(name, samples, unit="ratio", better="lower"):
    emit("figure", name=name, unit=unit, better=better, samples=samples)


def timed(action):
    # What was begun before is over.
    time.sleep(0.05)
    start = time.monotonic_ns()
    action()
    return time.monotonic_ns() - start


# Drivers and devices.


def first_of(module):
    """The name of the first test device that a driver is for."""
    return ext_lib.Driver(module).functions()[0]


def child_of(device, kind):
    """The name of a device's disk or interface, once it is there."""
    children = BUS / device / kind
    return wait_for(lambda: list(children.glob("*")), f"{kind} of {device}", PATIENCE)[0].name


def ours(module=BLOCK):
    """Has our driver run the devices."""
    unload(module)
    sh("modprobe", module)


def theirs(module=BLOCK):
    """Has the kernel's own driver run them."""
    unload(module)
    ext_lib.Driver(module).load()


def extended(module=BLOCK):
    """Has the kernel's own driver run them, with the extension."""
    unload(module)
    ext_lib.load()
    ext_lib.Driver(module).load()


def unload(module):
    """Unloads a driver, whosever it is, and the extension."""
    Modules.remove(module)
    Modules.remove(ext_lib.MODULE)


def pairs(count, first, second):
    """Does the two in turn, and returns what they return as pairs; which one begins alternates."""
    found = []
    for number in range(count):
        if number % 2:
            result = second()
            found.append((first(), result))
        else:
            result = first()
            found.append((result, second()))
    return found


def ratios(found, name=None):
    return [a[name] / b[name] if name else a / b for a, b in found]


# I/O.


def disk():
    return child_of(first_of(BLOCK), "block")


@contextlib.contextmanager
def fio(target, job, seconds):
    """Runs fio on the disk; it has begun. Its process is yielded."""
    access, size, depth, jobs = job
    command = [
        "fio", "--name=bench", f"--filename=/dev/{target}", "--direct=1", "--ioengine=libaio",
        f"--rw={access}", f"--bs={size}", f"--iodepth={depth}", f"--numjobs={jobs}",
        "--norandommap", "--time_based", f"--runtime={int(seconds * 1000)}ms", "--thread",
        "--group_reporting", "--eta=never", "--output-format=json",
        # From the submission on, which is the driver's work, too.
        "--lat_percentiles=1", "--clat_percentiles=0",
    ]
    before = completed(target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: completed(target) > before + 8 or process.poll() is not None,
                 "fio begins", PATIENCE)
        try:
            yield process
        finally:
            process.terminate()


def completed(target):
    """How many reads and writes the disk has completed."""
    fields = Path(f"/sys/block/{target}/stat").read_text().split()
    return int(fields[0]) + int(fields[4])


class Soaker:
    """Counts, at idle priority, with what the only processor has left: the more, the less it was
    busy.

    The kernel's account of idle time won't do. Where the clock counts instructions, it is wrong by
    a third if the processor becomes idle between any two I/Os.
    """

    def __init__(self):
        # Shared with the process that counts.
        self._counter = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        # How much it counts when it has the processor for itself.
        with self.run():
            time.sleep(SETTLE)
            start, count = time.monotonic_ns(), self.count()
            time.sleep(WINDOW)
            self._per_ns = (self.count() - count) / (time.monotonic_ns() - start)

    @contextlib.contextmanager
    def run(self):
        pid = os.fork()
        if pid == 0:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            self._soak()
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _soak(self):
        for count in itertools.count():
            self._counter[0] = count
            for _ in range(100):
                pass

    def count(self):
        return self._counter[0]

    def idle_ns(self):
        return self.count() / self._per_ns

    def measure(self, job):
        """As the function, and how long the processor was busy for each I/O."""
        with self.run():
            return measure(job, self.idle_ns)


def measure(job, idle_ns=None):
    """Throughput and latency with the driver that is there, and how long the processor was busy
    for each I/O, if it is known how long it is idle.
    """
    target = disk()
    # With one queue there would be a scheduler, with which nothing is completed in batches.
    Path(f"/sys/block/{target}/queue/scheduler").write_text("none")

    def snapshot():
        return time.monotonic_ns(), idle_ns() if idle_ns else 0, completed(target)

    window = WINDOW_BUSY if idle_ns else WINDOW
    with fio(target, job, SETTLE + window * 1.25) as process:
        time.sleep(SETTLE)
        snapshots = [snapshot()]
        for _ in range(SLICES):
            time.sleep(window / SLICES)
            snapshots.append(snapshot())
        output = process.communicate()[0]
    result = json.loads(output[output.index("{"):])["jobs"][0]
    if result["error"]:
        sys.exit(f"fio reports error {result['error']}")
    latency = result["read" if "read" in job[0] else "write"]["lat_ns"]["percentile"]
    slices = [[b - a for a, b in zip(*two)] for two in itertools.pairwise(snapshots)]
    measured = {
        "iops": statistics.median(ios * 1e9 / duration for duration, _, ios in slices),
        "p50": latency["50.000000"],
        "p99": latency["99.000000"],
    }
    if idle_ns:
        measured["busy"] = statistics.median((duration - idle) / ios
                                             for duration, idle, ios in slices)
    return measured


def against_theirs(options, module, put_in_place, measured):
    """Pairs of what is measured with a driver put in place, and with the kernel's own."""
    def side(put):
        put(module)
        return measured()

    first = theirs if options.control else put_in_place
    return pairs(options.pairs, lambda: side(first), lambda: side(theirs))


def compare(options, jobs, put_in_place, measured):
    """Measures the jobs against the kernel's own driver; yields the name of each and its pairs."""
    for job in jobs:
        name = "{}-{}-d{}-j{}".format(*job)
        print(f"{name}: {options.pairs} pairs", flush=True)
        yield name, against_theirs(options, BLOCK, put_in_place, lambda: measured(job))


def data_path(options, jobs=MANY):
    """Our driver of disks against the kernel's, where the clock counts instructions."""
    for name, found in compare(options, jobs, ours, Soaker().measure):
        figure_throughput(f"blk.{name}", found)
        figure(f"blk.{name}.cpu_per_io_ratio", ratios(found, "busy"))


def latency(options):
    """The same with one request at a time."""
    data_path(options, SINGLE)


def smp(options):
    """The same with two processors, by the clock."""
    for name, found in compare(options, SINGLE + MANY, ours, measure):
        figure_throughput(f"smp.blk.{name}", found)


def figure_throughput(name, found):
    figure(f"{name}.iops_ratio", ratios(found, "iops"), better="higher")
    figure(f"{name}.p50_ratio", ratios(found, "p50"))
    figure(f"{name}.p99_ratio", ratios(found, "p99"))


# Suspending.


def cycle(device):
    device.request("suspend")
    device.request("resume")


def rebind(device):
    driver = (device.path / "driver").resolve()

    def unbind_bind():
        (driver / "unbind").write_text(device.name)
        (driver / "bind").write_text(device.name)

    return unbind_bind


def against(device, other, count):
    """Pairs of the times of a suspend with its resume, and of something else."""
    other()
    cycle(device)
    return pairs(count, lambda: timed(lambda: cycle(device)), lambda: timed(other))


def against_rebind(device, count):
    """The same, where the other is an unbind with its bind."""
    return against(device, rebind(device), count)


def suspend(options):
    """What a suspend costs, with our drivers."""
    sh("modprobe", "virtio_rng")
    for path in sorted(BUS.glob("*/suspend")):
        device = Device(path.parent.name)
        name = f"rng-{device.read('revision')}"
        print(f"{name}: {options.pairs} pairs", flush=True)
        figure(f"suspend_resume.{name}.vs_rebind", ratios(against_rebind(device, options.pairs)))
        count_accesses(device, name)
    unload("virtio_rng")

    ours()
    device = Device(first_of(BLOCK))
    print(f"disk: {options.pairs} pairs", flush=True)
    found = against_rebind(device, options.pairs)
    figure("suspend_resume.vs_rebind", ratios(found))
    count_accesses(device, "blk")
    # A driver is not unbound under load, so this is held against the rebinds of before.
    loaded = []
    with fio(disk(), ("randread", "4k", 32, 4), 60):
        for _ in range(options.pairs):
            time.sleep(0.05)
            loaded.append(timed(lambda: cycle(device)))
    figure("suspend_resume.loaded.vs_rebind",
           [ns / rebound for ns, (_, rebound) in zip(loaded, found)])
    unload(BLOCK)


def count_accesses(device, name):
    """Accesses to the status in one suspend of a device that presents the bit at once."""
    device.mailbox.clear()
    device.request("suspend")
    kinds = "".join(access[0] for access in device.mailbox.status_log())
    device.request("resume")
    before, _, after = kinds.partition("w")
    for what, count in (("looks", len(before)), ("writes", kinds.count("w")),
                        ("rereads", after.count("r"))):
        figure(f"suspend.{name}.status_{what}", [count], "accesses")


# The extension.


def extension_path(options):
    """The kernel's own drivers with and without the extension, where the clock counts
    instructions.
    """
    for name, found in compare(options, EXTENSION_JOBS, extended, Soaker().measure):
        figure(f"extension.blk.{name}.iops_ratio", ratios(found, "iops"), better="higher")
        figure(f"extension.blk.{name}.cpu_per_io_ratio", ratios(found, "busy"))
    unload(BLOCK)
    print(f"cable: {options.pairs} pairs", flush=True)
    found = against_theirs(options, NET, extended, throughput)
    figure("extension.net.throughput_ratio", ratios(found), better="higher")
    unload(NET)


def throughput():
    """Of TCP from one end of the cable to the other, in bits a second."""
    one, other = net_lib.cable()
    try:
        return one.iperf(other, IPERF_SECONDS)["sum_received"]["bits_per_second"]
    finally:
        for end in (one, other):
            end.tear_down()


def set_link(interface, up):
    request = struct.pack("16sH14x", interface.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)[0]
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), flags))


def extension(options):
    """What a suspend of the kernel's own drivers costs, against what else there is."""
    extended(BLOCK)
    device = Device(first_of(BLOCK))
    print(f"disk of the kernel's driver: {options.pairs} pairs", flush=True)
    figure("extension.blk.suspend_resume.vs_rebind", ratios(against_rebind(device, options.pairs)))
    unload(BLOCK)

    extended(NET)
    device = Device(first_of(NET))
    print(f"interface: twice {options.pairs} pairs", flush=True)
    interface = child_of(device.name, "net")
    set_link(interface, True)

    def down_up():
        set_link(interface, False)
        set_link(interface, True)

    found = against(device, down_up, options.pairs)
    figure("extension.net.suspend_resume.vs_link", ratios(found))

    unbind_bind = rebind(device)

    def rebound():
        unbind_bind()
        # One that was up has to be set up again.
        set_link(child_of(device.name, "net"), True)

    found = against(device, rebound, options.pairs)
    figure("extension.net.suspend_resume.vs_rebind", ratios(found))
    unload(NET)


# The system's sleep.


class Callbacks:
    """What the PM core calls for devices, one after the other, as the kernel traces it."""

    EVENTS = "device_pm_callback_start", "device_pm_callback_end"
    BEGIN = re.compile(r"([0-9.]+): device_pm_callback_start: .* (\S+), parent: .*\[(\w+)\]$")
    END = re.compile(r"([0-9.]+): device_pm_callback_end: .* (\S+), err=(-?\d+)$")

    def __init__(self):
        (sleep_lib.POWER / "pm_async").write_text("0")
        if not (TRACING / "trace").exists():
            sh("mount", "-t", "tracefs", "tracefs", TRACING)
        for event in self.EVENTS:
            (TRACING / "events/power" / event / "enable").write_text("1")

    def of(self, mode):
        """The system sleeps. Returns how long the wake-up took for each device, in microseconds."""
        trace = TRACING / "trace"
        trace.write_text("")
        sleep_lib.sleep(mode)
        took, begun = {}, {}
        for line in trace.read_text().splitlines():
            if found := self.BEGIN.search(line):
                moment, device, phase = found.groups()
                if phase == "resume":
                    begun[device] = float(moment)
            elif (found := self.END.search(line)) and found[2] in begun:
                moment, device, error = found.groups()
                if error != "0":
                    sys.exit(f"{device} does not wake: {line}")
                took[device] = took.get(device, 0) + (float(moment) - begun.pop(device)) * 1e6
        if begun or not took:
            sys.exit(f"the trace of the wake-up is not whole: {begun}")
        return took


def sleep(options):
    """What of a wake-up is the devices', with the kernel's own drivers: kept against reset."""
    ext_lib.load()
    extended = []
    for module in (BLOCK, NET):
        driver = ext_lib.Driver(module)
        driver.load()
        extended += [Device(name) for name in driver.functions()]
    for device in extended:
        if device.driver == NET:
            set_link(child_of(device.name, "net"), True)
    callbacks = Callbacks()
    for mode in sleep_lib.MODES:
        # One of each driver.
        measured = {device.driver: device for device in extended if sleep_lib.can_keep(device, mode)}
        print(f"{mode}: {options.pairs} pairs", flush=True)

        def side(how, mode=mode, measured=measured):
            ways = []
            for device in measured.values():
                device.write("sleep", how)
                ways.append(sleep_lib.Way(device))
            took = callbacks.of(mode)
            for way in ways:
                way.is_kept() if how == "keep" else way.is_reset()
            # A function that is left out of the sleep has none.
            return {module: (took[device.name], took.get(device.pci.name, 0))
                    for module, device in measured.items()}

        found = pairs(options.pairs, lambda: side("keep"), lambda: side("reset"))
        for module in measured:
            both = [(kept[module], reset[module]) for kept, reset in found]
            name = f"sleep.{mode}.{module}"
            figure(f"{name}.kept_vs_reset", [kept[0] / reset[0] for kept, reset in both])
            figure(f"{name}.with_function.kept_vs_reset", ratios([map(sum, two) for two in both]))
    unload(BLOCK)
    unload(NET)


# The picture.


def timeline(_options):
    """The throughput of a disk across a suspend."""
    step, running, suspended = 0.05, 1.5, 1.0
    ours()
    device = Device(first_of(BLOCK))
    target = disk()
    points, marks = [], []

    def sample(until):
        while time.monotonic() < until:
            time.sleep(step)
            points.append((time.monotonic(), completed(target)))

    with fio(target, ("randread", "4k", 32, 1), 60):
        time.sleep(0.5)
        start = time.monotonic()
        points.append((start, completed(target)))
        sample(start + running)
        device.request("suspend")
        marks.append(time.monotonic())
        sample(marks[0] + suspended)
        device.request("resume")
        marks.append(time.monotonic())
        sample(marks[1] + running)
    curve = [(t1 - start, (n1 - n0) / (t1 - t0))
             for (t0, n0), (t1, n1) in zip(points, points[1:])]
    emit("timeline", iops=curve, suspended=[mark - start for mark in marks])
    unload(BLOCK)


GROUPS = {
    "data-path": data_path,
    "latency": latency,
    "smp": smp,
    "suspend": suspend,
    "extension-path": extension_path,
    "extension": extension,
    "sleep": sleep,
    "timeline": timeline,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    options = parser.parse_args()
    for name in options.groups:
        print(f"== {name}", flush=True)
        GROUPS[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
