#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The command virtio-suspend (tools/virtio/suspend), with test devices.

The program is that of the tree, out/target/release/virtio-suspend, or the one that
VIRTIO_SUSPEND_COMMAND names, or one that is installed.
"""

import contextlib
import functools
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tty
from pathlib import Path

from blk_lib import Disk
from suspend_lib import (
    HERE,
    PROMPT,
    SLOWNESS,
    Fail,
    Modules,
    Skip,
    case,
    devices,
    expect,
    require,
    run,
    sh,
    wait_for,
    works,
)

# How late the first process may be before the watchdog takes over, in seconds: GRACE of hold.rs.
GRACE = 5
# Exit statuses, of the manual page.
USAGE, REFUSED, UNDONE, EARLY = 2, 3, 4, 6
NOBODY = 65534
# Longer than a case waits.
LONG = "120s"


def each(*values):
    """All of them; where starting a program takes a second, the first."""
    return values[:1] if SLOWNESS > 1 else values


@functools.cache
def program():
    """The program, where anybody may execute it."""
    places = [
        os.environ.get("VIRTIO_SUSPEND_COMMAND"),
        HERE.parents[3] / "out/target/release/virtio-suspend",
        shutil.which("virtio-suspend"),
    ]
    for place in filter(None, places):
        if Path(place).exists():
            copy = Path(tempfile.mkdtemp(prefix="command-")) / "virtio-suspend"
            copy.parent.chmod(0o755)
            shutil.copy(place, copy)
            return str(copy)
    raise Skip("virtio-suspend has not been built")


def call(*words, **options):
    """Runs the command to its end."""
    options = {"capture_output": True, "text": True, "timeout": 20 * PROMPT} | options
    return subprocess.run([program(), *words], check=False, **options)


def succeeds(*words, **options):
    result = call(*words, **options)
    expect((result.returncode, result.stderr), (0, ""), f"{' '.join(words)}: status and errors")
    return result.stdout


def fails(status, text, *words, **options):
    """It ends with that status, and says that."""
    result = call(*words, **options)
    expect(result.returncode, status, f"{' '.join(words)}: {result.stderr!r}: status")
    require(text in result.stderr, f"{' '.join(words)}: no {text!r} in {result.stderr!r}")
    return result.stderr


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent(pid):
    """Who started a process; none if it is gone."""
    try:
        # What is in parentheses, its name, may be anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Running:
    """The command, while it runs."""

    def __init__(self, *words, command=None, **options):
        self.errors = tempfile.TemporaryFile("w+")
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True} | options
        command = [command or program(), *words]
        self.process = subprocess.Popen(command, stderr=self.errors, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10 * PROMPT)
        if self.process.stdout:
            self.process.stdout.close()
        self.errors.close()

    def status(self, within=10 * PROMPT):
        wait_for(lambda: self.process.poll() is not None, "the command ends", within)
        return self.process.returncode

    def said(self):
        self.errors.seek(0)
        return self.errors.read()

    def watchdog(self):
        """The process ID of the second process."""
        # Not by "children" in procfs, which not every kernel has.
        (child,) = (pid for pid in processes() if parent(pid) == self.process.pid)
        return child


def pair():
    """A device without a disk, and a disk."""
    other = next((d for d in devices() if d.driver == Modules.DRIVER and d.mailbox), None)
    disk = next((d for d in devices() if d.driver == Modules.BLOCK and d.mailbox), None)
    if not other or not disk:
        raise Skip("a test device of each type, entropy and block, is needed")
    return other, disk


def states(found, expected, within=10 * PROMPT):
    wait_for(lambda: all(dev.state == expected for dev in found), f"they are {expected}", within)


def untouched(before, found):
    """Nothing has been asked of the devices."""
    expect([dev.attributes() for dev in found], before, "what the files say")


@contextlib.contextmanager
def none_touched(found):
    before = [dev.attributes() for dev in found]
    yield
    untouched(before, found)


def once_more(before, found):
    """Each has been suspended and resumed once more, and no request has failed."""
    expected = [(suspends + 1, resumes + 1, failures) for suspends, resumes, failures in before]
    expect([dev.counts() for dev in found], expected, "suspends, resumes, failures")


def locked_in(said):
    """It had all that it needed in memory."""
    require("allocations: 0, page faults: 0" in said, f"it allocated, or faulted: {said!r}")


# Looking.


@case("what can be seen is listed, by anybody")
def listing():
    found = pair()
    for options in each({"user": NOBODY, "group": NOBODY, "extra_groups": []}, {}):
        listed = {entry["device"]: entry for entry in json.loads(succeeds("list", "--json", **options))}
        for dev in found:
            entry = listed[dev.name]
            expect(entry["driver"], dev.driver, "driver")
            expect(entry["objection"], None, "objection")
            for name in ("state", "revision", "last_error"):
                expect(entry["suspend"][name], dev.read(name), name)
        disk = Disk(found[1]).name
        expect(listed[found[1].name]["disks"], [disk], "disks")
        table = succeeds("list", **options).splitlines()
        expect(table[0].split(), ["DEVICE", "TYPE", "DRIVER", "NAME", "REVISION", "STATE"], "head")
        row = next(line.split() for line in table if line.startswith(found[1].name + " "))
        expect(row, [found[1].name, "block", "virtio_blk", disk, "1.4", "running"], "row")


@case("each change is told, as it happens")
def following():
    dev, _ = pair()
    with Running("status", dev.name, "--follow") as command:
        # Not by lines of Python, which may hold back some that have been read.
        output, text = command.process.stdout.fileno(), ""
        for goal, state in ((None, "running"), ("suspend", "suspended"), ("resume", "running")):
            if goal:
                dev.request(goal)
            # What lies between may have passed before it was looked at.
            while f"{dev.name} {state}\n" not in text:
                require(select.select([output], [], [], 5 * PROMPT)[0], f"no {state}: {text!r}")
                text += os.read(output, 4096).decode()
            text = text.partition(f"{dev.name} {state}\n")[2]


@case("counters are printed for a monitoring system")
def metrics():
    dev, _ = pair()
    succeeds("suspend", dev.name)
    lines = succeeds("metrics").splitlines()
    expect(lines[-1], "# EOF", "the last line")
    (line,) = [x for x in lines if x.startswith(f'virtio_suspend_suspends_total{{device="{dev.name}"')]
    expect(int(line.split()[-1]), dev.number("suspends"), "suspends")
    states = [x for x in lines if x.startswith(f'virtio_suspend_state{{device="{dev.name}"')]
    (line,) = [x for x in states if x.endswith(" 1")]
    expect('state="suspended"' in line, True, f"the state of {line}")


# Asking.


@case("devices are suspended and resumed by any of their names")
def by_name():
    other, disk = found = pair()
    before = [dev.counts() for dev in found]
    succeeds("suspend", other.name, Disk(disk).path)
    states(found, "suspended", 0)
    succeeds("resume", Disk(disk).name, other.name)
    states(found, "running", 0)
    once_more(before, found)
    # Which they do already.
    succeeds("resume", Disk(disk).name, other.name)
    succeeds("resume", "--all")
    for dev in found:
        works(dev)


@case("all that can be suspended are suspended, and resumed")
def every():
    found = [dev for dev in devices() if dev.read("revision") in ("1.4", "draft")]
    before = [dev.counts() for dev in found]
    succeeds("suspend", "--all")
    states(found, "suspended", 0)
    succeeds("resume", "--all")
    states(found, "running", 0)
    once_more(before, found)


@case("what would be done is told, and not done: {command}", command=each("run", "suspend", "serve"))
def dry(command):
    other, disk = found = pair()
    more = {"run": ["--for", "5s"], "serve": ["--vsock", "999"]}.get(command, [])
    with none_touched(found):
        text = succeeds(command, disk.name, other.name, "--dry-run", *more)
    # The disk comes last, whatever was named first.
    require(text.index(other.name) < text.index(disk.name), f"the order: {text}")


@case("one that refuses is named, and all others run again: {command}", command=each("run", "suspend"))
def refusal(command):
    other, disk = pair()
    counts = other.counts()
    disk.mailbox.set(faults=["suspend-never"])
    more = ["--for", "5s"] if command == "run" else []
    said = fails(UNDONE, f"{disk.name} ({Disk(disk).name}) refused", command, other.name, disk.name,
                 "--timeout", "500ms", *more)  # fmt: skip
    require(disk.mailbox.happened("suspend-never"), "the device did not refuse")
    require("ETIMEDOUT" in said and "run again" in said, f"it does not say why: {said!r}")
    states((other, disk), "running", 0)
    # It had been suspended before the other one refused.
    once_more([counts], [other])
    disk.mailbox.set(faults=[])
    works(other)


@case("one of all devices refuses: it is named, and all run again")
def one_of_all():
    found = [d for d in devices() if d.mailbox and d.read("revision") in ("1.4", "draft")]
    if len(found) < 3:
        raise Skip("three devices are needed, of which one refuses in the middle")
    odd = found[len(found) // 2]
    rest = [dev for dev in found if dev is not odd]
    before, others = odd.counts(), [dev.counts() for dev in rest]
    odd.mailbox.set(faults=["suspend-never"])
    said = fails(UNDONE, "refused", "run", "--all", "--for", "5s", "--timeout", "500ms")
    require(odd.mailbox.happened("suspend-never"), "the device did not refuse")
    (line,) = [line for line in said.splitlines() if "refused" in line]
    require(odd.name in line.replace(":", " ").split(), f"it is not named: {said!r}")
    states(found, "running", 0)
    expect(odd.counts()[:2], before[:2], "its suspends and resumes")
    more = [[now - then for now, then in zip(dev.counts(), was)] for dev, was in zip(rest, others)]
    # Those before it had been suspended.
    require([1, 1, 0] in more, "none was suspended")
    require(all(one in ([1, 1, 0], [0, 0, 0]) for one in more), f"the others: {more}")
    odd.mailbox.set(faults=[])
    before = [dev.counts() for dev in found]
    succeeds("run", "--all", "--for", "100ms")
    once_more(before, found)
    for dev in found:
        works(dev)


@case("one that is suspended already is refused, and left so")
def already():
    other, disk = pair()
    other.request("suspend")
    with none_touched((other, disk)):
        fails(REFUSED, "suspended already", "suspend", disk.name, other.name)
        fails(REFUSED, "suspended already", "run", disk.name, other.name, "--for", "1s")


@case("deadlines are set for a request, and set back")
def deadlines():
    dev, _ = pair()
    before = dev.read("timeout_ms")
    with Running("run", dev.name, "--until", "SIGUSR1", "--timeout", "1234ms") as command:
        states([dev], "suspended")
        expect(dev.read("timeout_ms"), "1234", "the deadline meanwhile")
        command.process.send_signal(signal.SIGUSR1)
        expect(command.status(), 0, "status")
    expect(dev.read("timeout_ms"), before, "the deadline afterwards")


BAD = [
    (USAGE, ["suspend"]),
    (USAGE, ["suspend", "--all", "virtio0"]),
    (USAGE, ["run", "DEV"]),
    (USAGE, ["run", "DEV", "--for", "5"]),
    (USAGE, ["run", "DEV", "--for", "0s"]),
    (USAGE, ["run", "DEV", "--for", "-1s"]),
    (USAGE, ["run", "DEV", "--for", "99999999999999999999s"]),
    (USAGE, ["run", "DEV", "--until", "SIGKILL"]),
    (USAGE, ["run", "DEV", "--until", "relative"]),
    (USAGE, ["run", "DEV", "--for", "1s", "--exec", "/bin/true", "--until", "line"]),
    (USAGE, ["serve", "DEV"]),
    (USAGE, ["serve", "DEV", "--vsock", "x"]),
    (USAGE, ["no-such-command"]),
    (REFUSED, ["suspend", ""]),
    (REFUSED, ["suspend", "no-such-device"]),
    (REFUSED, ["suspend", "DEV", "../DEV"]),
    (REFUSED, ["suspend", "DEV/suspend"]),
    (REFUSED, ["suspend", "DEV", "--timeout", "11m"]),
    (REFUSED, ["run", "DEV", "--until", "/no-such-directory/file"]),
    (REFUSED, ["run", "DEV", "--until", "/proc/self/status"]),
    (REFUSED, ["run", "DEV", "--exec", ""]),
    (REFUSED, ["run", "DEV", "--exec", "true"]),
    (REFUSED, ["run", "DEV", "--exec", "/no-such-program"]),
    (REFUSED, ["run", "DEV", "--exec", "/etc"]),
    (REFUSED, ["run", "DEV", "--exec", "/usr/bin/sleep 1"]),
    (REFUSED, ["run", "DEV", "--exec", "/usr/bin/ldd"]),
]


@case("bad input is refused, and nothing is done")
def bad_input():
    dev, _ = pair()
    with none_touched([dev]):
        # Each is a program that is started: of those that the parser refuses, by its own tests, few.
        for status, words in BAD[:: 6 if SLOWNESS > 1 else 1]:
            words = [word.replace("DEV", dev.name) for word in words]
            expect(call(*words, stdin=subprocess.DEVNULL).returncode, status, " ".join(words))


@case("who is not root can do nothing but look")
def unprivileged():
    dev, _ = pair()
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    with none_touched([dev]):
        for words in each(
            ["run", dev.name, "--for", "1s"],
            ["suspend", dev.name],
            ["resume", dev.name],
            ["serve", dev.name, "--vsock", "5000"],
            ["watchdog", "1", "[]"],
        ):
            fails(REFUSED, "only root", *words, **as_nobody)
        succeeds("status", dev.name, **as_nobody)


# Running.


@case("run suspends for a time, with all that it needs in memory")
def for_a_time():
    found = pair()
    before = [dev.counts() for dev in found]
    with Running("run", *(dev.name for dev in found), "--for", "2s", "--json") as command:
        states(found, "suspended")
        expect(command.status(), 0, "status")
        expect(command.said(), "", "errors")
        result = json.loads(command.process.stdout.read())
    states(found, "running", 0)
    once_more(before, found)
    expect(result["end"], "time", "why it ended")
    require(2000 <= result["held_ms"] < 2000 + 1000 * PROMPT, f"held for {result['held_ms']} ms")
    expect(result["allocations"], 0, "allocations")
    expect(result["page_faults"], {"minor": 0, "major": 0}, "page faults")
    for dev in found:
        works(dev)


@case("run resumes when {what}", what=each("a line is read", "a file is made", "a signal arrives",
                                           "its input ends"))
def until(what):
    found = pair()
    path = Path(tempfile.mkdtemp(prefix="command-")) / "go"
    words = {"a file is made": str(path), "a signal arrives": "SIGUSR2"}.get(what, "line")
    options = {"stdin": subprocess.PIPE}
    with Running("run", *(dev.name for dev in found), "--until", words, **options) as command:
        states(found, "suspended")
        stdin = command.process.stdin
        (path.parent / "other").touch()
        require(command.process.poll() is None, "it ended before")
        states(found, "suspended", 0)
        if what == "a file is made":
            path.touch()
        elif what == "a signal arrives":
            command.process.send_signal(signal.SIGUSR2)
        elif what == "a line is read":
            stdin.write("go\n")
            stdin.flush()
        else:
            stdin.close()
        expect(command.status(), 0, f"status ({command.said()})")
        stdin.close()
    states(found, "running", 0)


@case("run resumes when what it waits for does not happen, and says so")
def in_vain():
    found = pair()
    fails(EARLY, "did not happen", "run", *(dev.name for dev in found), "--until", "/run/never",
          "--at-most", "1s")  # fmt: skip
    states(found, "running", 0)


@case("{signal} has all run again", signal=each("SIGTERM", "SIGHUP", "SIGINT"))
def signals(signal):
    found = pair()
    with Running("run", *(dev.name for dev in found), "--for", LONG) as command:
        states(found, "suspended")
        command.process.send_signal(getattr(globals()["signal"], signal))
        expect(command.status(), EARLY, "status")
        require("all run again" in command.said(), command.said())
    states(found, "running", 0)


@case("the first process is killed: the watchdog has all run again")
def killed():
    found = pair()
    before = [dev.counts() for dev in found]
    with Running("run", *(dev.name for dev in found), "--for", LONG) as command:
        states(found, "suspended")
        command.process.kill()
        states(found, "running")
        wait_for(lambda: "the first process died" in command.said(), "the watchdog says so")
        locked_in(command.said())
    once_more(before, found)


@case("the first process is stopped past its time: the watchdog kills it, and has all run again")
def stopped():
    found = pair()
    with Running("run", *(dev.name for dev in found), "--for", "1s") as command:
        states(found, "suspended")
        command.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        # It is stopped, not slow; that alone is no reason before its time.
        states(found, "suspended", 0)
        states(found, "running", 1 + GRACE + 5 * PROMPT)
        expect(command.status(), -signal.SIGKILL, "status")
        wait_for(lambda: "was late" in command.said(), "the watchdog says so")
        locked_in(command.said())


@case("the watchdog is killed: the first process does not go on without")
def unguarded():
    found = pair()
    with Running("run", *(dev.name for dev in found), "--for", LONG) as command:
        states(found, "suspended")
        os.kill(command.watchdog(), signal.SIGKILL)
        expect(command.status(), EARLY, "status")
        require("watchdog is gone" in command.said(), command.said())
    states(found, "running", 0)


@case("signals that end others, or stop them, do not end the watchdog")
def stubborn():
    found = pair()
    with Running("run", *(dev.name for dev in found), "--for", LONG) as command:
        states(found, "suspended")
        watchdog = command.watchdog()
        for number in ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGTSTP"):
            os.kill(watchdog, getattr(signal, number))
        command.process.send_signal(signal.SIGTSTP)
        # Each has a session of its own.
        require(os.getsid(watchdog) != os.getsid(command.process.pid), "they share a session")
        command.process.kill()
        states(found, "running")


@case("a program in memory is run meanwhile")
def hook():
    found = pair()
    busybox = shutil.which("busybox")
    if not busybox or "dynamically" in call("run", found[0].name, "--exec", f"{busybox} true",
                                            "--dry-run").stderr:  # fmt: skip
        raise Skip("no busybox that is linked statically")
    names = [dev.name for dev in found]
    files = " ".join(str(dev.file("state")) for dev in found)
    result = call("run", *names, "--exec", f"{busybox} cat {files}")
    expect((result.returncode, result.stderr), (0, "suspended\nsuspended\n"), "status, output")
    states(found, "running", 0)
    fails(1, "ended with 1", "run", *names, "--exec", f"{busybox} false")
    states(found, "running", 0)
    # One that takes too long is ended.
    succeeds("run", *names, "--exec", f"{busybox} sleep 100", "--for", "1s")
    states(found, "running", 0)


@case("it works from the disk that it suspends, with swap there and the file systems frozen")
def from_the_disk():
    _, disk = pair()
    # Tests of other files use what is on it for nothing.
    sh("mkfs.ext4", "-q", "-F", Disk(disk).path)
    sh("modprobe", "ext4", check=False)
    if "ext4" not in Path("/proc/filesystems").read_text().split():
        raise Skip("the kernel has no ext4")
    mount = Path(tempfile.mkdtemp(prefix="command-"))
    sh("mount", "-t", "ext4", Disk(disk).path, mount)
    with contextlib.ExitStack() as stack:
        stack.callback(sh, "umount", mount)
        copy, swap = mount / "virtio-suspend", mount / "swap"
        shutil.copy(program(), copy)
        swap.write_bytes(bytes(16 << 20))
        swap.chmod(0o600)
        sh("mkswap", swap)
        sh("swapon", swap)
        stack.callback(sh, "swapoff", swap)
        os.sync()
        # Nothing of it is in memory when it is started.
        Path("/proc/sys/vm/drop_caches").write_text("3")
        text = succeeds("list")
        require(f"{mount} (ext4)" in text and f"swap {swap}" in text, f"who uses it: {text}")
        fails(REFUSED, f"swap {swap}", "suspend", disk.name)
        for end in each("killed", "time"):
            words = ["run", disk.name, "--for", "2s" if end == "time" else LONG, "--fsfreeze"]
            with Running(*words, command=str(copy)) as command:
                states([disk], "suspended")
                if end == "killed":
                    command.process.kill()
                    states([disk], "running")
                    wait_for(lambda: "first process died" in command.said(), "the watchdog says so")
                    locked_in(command.said())
                else:
                    expect(command.status(), 0, f"status ({command.said()})")
                    locked_in(command.process.stdout.read())
            # It is not frozen any more.
            with (mount / end).open("w") as file:
                file.write(end)
                os.fsync(file.fileno())


# The trigger.


class Host:
    """The other side of the trigger."""

    def __init__(self, read, write):
        self._read, self._write = read, write

    def say(self, text):
        self._write(text)

    def hears(self, expected, within=10 * PROMPT):
        """The next lines that it is told."""
        said, end = b"", time.monotonic() + within
        while said.count(b"\n") < expected.count("\n"):
            data = self._read(max(0, end - time.monotonic()))
            require(data, f"it hears {said!r}, not {expected!r}")
            said += data
        expect(said.decode(), expected, "what it is told")


@contextlib.contextmanager
def on_a_port(found, *words):
    """The command, serving a port, for which a terminal stands."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)

    def read(seconds):
        return os.read(ours, 4096) if select.select([ours], [], [], seconds)[0] else b""

    names = [dev.name for dev in found]
    with Running("serve", *names, "--port", os.ttyname(theirs), *words) as command:
        try:
            yield command, Host(read, lambda text: os.write(ours, text)), lambda: os.close(ours)
        finally:
            os.close(theirs)
            with contextlib.suppress(OSError):
                os.close(ours)


@case("a host asks over a port, and is answered")
def trigger():
    found = pair()
    before = [dev.counts() for dev in found]
    with on_a_port(found) as (command, host, _):
        host.say(b"status\n")
        host.hears("ok running\n")
        host.say(b"resume\n")
        host.hears("error running\n")
        with none_touched(found):
            host.say(b"\xff\x00\n" + b"x" * 500 + b"\nsuspend 0\nsuspend vda\n\nSUSPEND\n")
            host.hears("error unknown\nerror too-long\nerror seconds\nerror seconds\n"
                       "error unknown\nerror unknown\n")  # fmt: skip
        host.say(b"suspend\n")
        host.hears("ok suspended 60\n")
        states(found, "suspended", 0)
        host.say(b"status\nsuspend 5\ngarbage\n")
        host.hears("ok suspended\nerror suspended\nerror unknown\n")
        states(found, "suspended", 0)
        host.say(b"resume\n")
        host.hears("ok running\n")
        states(found, "running", 0)
        once_more(before, found)
        command.process.terminate()
        expect(command.status(), 0, "status")


@case("a host that says nothing more has all run again after a time")
def silent_host():
    found = pair()
    with on_a_port(found, "--at-most", "2s") as (_, host, _):
        for seconds, limit in each((99, 2), (1, 1)):
            host.say(b"suspend %d\n" % seconds)
            host.hears(f"ok suspended {limit}\n")
            host.hears("resumed limit\n")
            states(found, "running", 0)


@case("one that refuses is told to the host, and all others run")
def refused_to_host():
    other, disk = pair()
    with on_a_port((other, disk), "--timeout", "500ms") as (_, host, _):
        disk.mailbox.set(faults=["suspend-never"])
        host.say(b"suspend\n")
        host.hears("error refused\n")
        require(disk.mailbox.happened("suspend-never"), "the device did not refuse")
        states((other, disk), "running", 0)
        disk.mailbox.set(faults=[])
        host.say(b"suspend\n")
        host.hears("ok suspended 60\n")
        host.say(b"resume\n")
        host.hears("ok running\n")


@case("while a host has devices suspended, the command is {what}: all run again",
      what=each("killed", "terminated"))
def served_and_ended(what):
    found = pair()
    with on_a_port(found) as (command, host, _):
        host.say(b"suspend\n")
        host.hears("ok suspended 60\n")
        if what == "killed":
            command.process.kill()
        else:
            command.process.terminate()
            host.hears("resumed ended\n")
        states(found, "running")


@case("over vsock only the host is listened to, and when it is gone all run again")
def vsock():
    found = pair()
    try:
        sh("modprobe", "vsock_loopback")
    except Fail:
        raise Skip("the kernel has no vsock_loopback") from None
    names = [dev.name for dev in found]
    local = socket.VMADDR_CID_LOCAL if hasattr(socket, "VMADDR_CID_LOCAL") else 1

    def connect(port):
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        connection.settimeout(10 * PROMPT)
        connection.connect((local, port))
        return connection

    def listening(command):
        wait_for(lambda: "listening" in command.said(), "it listens", 10 * PROMPT)

    with none_touched(found), Running("serve", *names, "--vsock", "701") as command:
        listening(command)
        with connect(701) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"suspend\n")
            with contextlib.suppress(ConnectionResetError):
                expect(connection.recv(100), b"", "what somebody else is told")
        wait_for(lambda: "is refused" in command.said(), "it says so")
    words = ["serve", *names, "--vsock", "702", "--peer", str(local)]
    with Running(*words) as command:
        listening(command)
        with connect(702) as connection:
            connection.sendall(b"suspend 30\n")
            expect(connection.recv(100), b"ok suspended 30\n", "the answer")
            states(found, "suspended", 0)
        states(found, "running")


if __name__ == "__main__":
    run(block=True)
