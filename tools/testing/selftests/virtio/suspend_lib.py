# SPDX-License-Identifier: GPL-2.0
"""What the tests of virtio SUSPEND have in common.

A test file is a list of cases, each one line of KTAP:

    @case("a {revision} device suspends", revision=REVISIONS)
    def suspends(revision):
        dev = device(revision=revision)
        dev.request("suspend")
        expect(dev.state, "suspended", "state")

    if __name__ == "__main__":
        run()

A case has one result. After it, whatever it came to, the devices run again with the settings they
had, no child is left, and three things fail it that it did not ask about: a rule broken by the
driver, as judged by a test device, a complaint in the kernel log, and a fault that it set and that
never took effect, which shows nothing.

Devices that have a control mailbox (tools/virtio, "The control mailbox in BAR 2") can be told to
misbehave. A case that needs one is skipped on a machine with other devices; so is one that needs
a revision of the feature that no device there has.
"""

import contextlib
import errno
import faulthandler
import fnmatch
import functools
import heapq
import itertools
import json
import mmap
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "kselftest"))

import ksft  # noqa: E402

BUS = Path("/sys/bus/virtio/devices")
HWRNG = "/dev/hwrng"
HWRNG_CLASS = Path("/sys/class/misc/hw_random")
DEBUGFS = Path("/sys/kernel/debug/virtio_suspend")

REVISIONS = ("1.4", "draft")
# The feature bit of each, and what a device offers to get there.
BIT = {"1.4": 43, "draft": 42}
OFFER = {"1.4": "43", "draft": "42"}
# What a running, and a suspended device presents.
RUNNING = 0x0F
SUSPENDED = {"1.4": 0x1B, "draft": 0x1F}

# How much slower than usual the kernel is, for example because it checks itself.
SLOWNESS = int(os.environ.get("SUSPEND_SLOWNESS", "1"))
# How many guests share the machine: what is waited for may take so much longer.
SHARE = int(os.environ.get("SUSPEND_SHARE", "1"))
# The deadline of transitions while a case runs, unless it sets another.
TIMEOUT_MS = 5000 * SLOWNESS * SHARE
# A delay that no case lives to see the end of, in milliseconds.
FAR_MS = 60_000
# "At once", on a slow and busy machine.
PROMPT = 2.0 * SLOWNESS * SHARE
# No case takes longer.
CASE_SECONDS = 40 * SLOWNESS * SHARE
# No file takes longer: less than `settings` says.
FILE_SECONDS = 590 * SLOWNESS
# How many of the longest cases are named in the end, of those that take so many seconds.
LONGEST, LONG = 5, 5.0

COMPLAINT = re.compile(
    r"WARNING:|BUG:|Oops|general protection fault|KASAN|UBSAN|unreferenced object"
    r"|possible (recursive|circular) locking|inconsistent lock state|suspicious RCU"
    r"|INFO: task .* blocked|INFO: rcu|refcount_t:"
)


class Fail(Exception):
    """The case failed."""


class Skip(Exception):
    """The case can't be run here."""


# Assertions.


def expect(actual, expected, what):
    if actual != expected:
        raise Fail(f"{what}: expected {expected!r}, got {actual!r}")


def require(condition, what):
    if not condition:
        raise Fail(what)


def expect_errno(expected, what, function, *args):
    """The call fails with this error, given by its name."""
    try:
        function(*args)
    except OSError as error:
        expect(errno_name(error.errno), expected, what)
    else:
        raise Fail(f"{what}: expected {expected}, but it succeeded")


def errno_name(number):
    # Which is what Linux calls it; there it is the same as ENOTSUP.
    if number == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"
    return errno.errorcode.get(number, str(number))


def told(function, *args):
    """The name of the error that a call ends with, or "success"."""
    try:
        function(*args)
    except OSError as error:
        return errno_name(error.errno)
    return "success"


def wait_for(condition, what, within=PROMPT):
    """Waits until the condition holds, and returns what it returned."""
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Fail(f"not within {within} s: {what}")
        time.sleep(0.01)


@contextlib.contextmanager
def within(seconds, what):
    """What is done in the block takes less than that."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    require(took < seconds, f"{what} took {took:.2f} s")


# The test device.


class Mailbox:
    """The control mailbox in BAR 2 of a test device."""

    MAGIC = 0x56535444
    VERSION = 1
    LENGTH, REPLY_LENGTH, COMMAND, REPLY = (x // 4 for x in (0x008, 0x00C, 0x1000, 0x2000))
    SIZE = 0x4000

    def __init__(self, pci):
        fd = os.open(pci / "resource2", os.O_RDWR)
        try:
            self._map = mmap.mmap(fd, self.SIZE)
        finally:
            os.close(fd)
        # Accesses of 4 bytes each: it is a device, no memory.
        self._words = memoryview(self._map).cast("I")
        if (self._words[0], self._words[1]) != (self.MAGIC, self.VERSION):
            raise LookupError("no mailbox")

    @classmethod
    def of(cls, pci):
        """The mailbox of a PCI function, None if it has none."""
        try:
            return cls(pci)
        except (OSError, LookupError, ValueError):
            return None

    def command(self, cmd, **arguments):
        text = json.dumps({"cmd": cmd, **arguments}).encode()
        padded = text + bytes(-len(text) % 4)
        for i in range(len(padded) // 4):
            self._words[self.COMMAND + i] = int.from_bytes(padded[4 * i : 4 * i + 4], "little")
        self._words[self.LENGTH] = len(text)
        length = self._words[self.REPLY_LENGTH]
        words = (self._words[self.REPLY + i] for i in range((length + 3) // 4))
        reply = json.loads(b"".join(w.to_bytes(4, "little") for w in words)[:length])
        require(reply["ok"], f"the test device refuses {text}: {reply.get('error')}")
        return reply

    def info(self):
        return self.command("info")

    def stats(self):
        return self.command("stats")

    def clear(self):
        self.command("clear")

    def set(self, **settings):
        """Changes settings; returns whether some of them wait for a reset."""
        return bool(self.command("set", settings=settings)["pending"])

    def objections(self):
        """What fails a case: rules broken by the driver, and faults that did not happen.

        A fault that is still set may happen yet: take them back first.
        """
        stats = self.stats()
        found = [f"{v['rule']}: {v['what']} ({v['access']})" for v in stats["violation_list"]]
        return found + [f"fault {fault} never took effect" for fault in stats["idle_faults"]]

    def happened(self, fault):
        """Whether a fault that is set has taken effect."""
        return fault in self.stats()["effective_faults"]

    def status_log(self):
        return self.stats()["status_log"]

    def counters(self):
        return self.stats()["counters"]


# Devices.


class Device:
    """A virtio device that can be suspended."""

    def __init__(self, name):
        self.name = name
        self.path = BUS / name
        self.pci = self.path.resolve().parent
        self.mailbox = Mailbox.of(self.pci)
        self.driver = (self.path / "driver").resolve().name
        self.settings = self.mailbox.info()["settings"] if self.mailbox else None

    def file(self, name):
        return self.path / "suspend" / name

    def read(self, name):
        return self.file(name).read_text().removesuffix("\n")

    def number(self, name):
        return int(self.read(name))

    def write(self, name, data):
        """One write(2) of all that data."""
        if isinstance(data, str):
            data = data.encode()
        fd = os.open(self.file(name), os.O_WRONLY)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    def request(self, goal):
        self.write("request", goal + "\n")

    @property
    def state(self):
        return self.read("state")

    @property
    def status(self):
        """The device status, which costs a read of the register."""
        return int((self.path / "status").read_text(), 16)

    def has_feature(self, bit):
        return (self.path / "features").read_text()[bit] == "1"

    def attributes(self):
        """All that the files say."""
        directory = self.path / "suspend"
        names = sorted(p.name for p in directory.iterdir() if p.name != "request")
        return {name: self.read(name) for name in names}

    def counts(self):
        return tuple(self.number(name) for name in ("suspends", "resumes", "failures"))

    @property
    def is_bound(self):
        return self.file("state").exists()

    def unbind(self):
        _write(Path(f"/sys/bus/virtio/drivers/{self.driver}/unbind"), self.name)

    def bind(self):
        _write(Path(f"/sys/bus/virtio/drivers/{self.driver}/bind"), self.name)
        wait_for(lambda: self.is_bound, f"{self.name} is bound")
        self.write("timeout_ms", str(TIMEOUT_MS))

    def unplug(self):
        """Removes the PCI function, as hot-unplug does."""
        remove = self.pci / "remove"
        if not remove.exists():
            raise Skip(f"{self.name} is no PCI function")
        _write(remove, "1")
        require(not self.path.exists(), f"{self.name} is still there")

    def plug(self):
        """Finds the PCI function again."""
        _write(Path("/sys/bus/pci/rescan"), "1")
        wait_for(lambda: self.is_bound, f"{self.name} is bound again")
        self.mailbox = Mailbox.of(self.pci)
        self.write("timeout_ms", str(TIMEOUT_MS))

    def rebind(self):
        if self.is_bound:
            self.unbind()
        self.bind()

    @contextlib.contextmanager
    def enabled_by_user_space(self):
        """User space has enabled the PCI function, too, and the device is bound anew.

        So the function is not disabled for its reset, and after the reset the transport takes that
        for a sign that there was none.
        """
        transport = (self.pci / "driver").resolve()
        unbind, bind = transport / "unbind", transport / "bind"
        unbind.write_text(self.pci.name)
        (self.pci / "enable").write_text("1")
        try:
            bind.write_text(self.pci.name)
            wait_for(lambda: self.is_bound, f"{self.name} is bound")
            self.write("timeout_ms", str(TIMEOUT_MS))
            yield
        finally:
            unbind.write_text(self.pci.name)
            # A reset has disabled it once, and the transport once more.
            if (self.pci / "enable").read_text() != "0\n":
                (self.pci / "enable").write_text("0")
            bind.write_text(self.pci.name)
            wait_for(lambda: self.is_bound, f"{self.name} is bound again")

    def need_mailbox(self):
        if not self.mailbox:
            raise Skip(f"{self.name} is no test device")
        return self.mailbox

    def configure(self, **settings):
        """Changes settings of the test device, and rebinds if a reset is needed for that."""
        if self.need_mailbox().set(**settings) or not self.is_bound:
            self.rebind()

    def queues(self):
        """The table in debugfs: one dictionary for each queue."""
        path = DEBUGFS / self.name / "queues"
        if not path.exists():
            raise Skip("debugfs is not there")
        lines = path.read_text().splitlines()
        keys = ("index", "layout", "size", "avail", "avail_wrap", "used", "used_wrap")
        keys += ("outstanding", "name")
        return [dict(zip(keys, line.split())) for line in lines[1:]]

    def restore(self):
        """Running, and with the settings it had."""
        if not self.path.exists():
            self.plug()
        pending = bool(self.mailbox) and self.mailbox.set(**self.settings)
        # A device that has failed in some way may still be watched: that ends, too.
        if pending or not self.is_bound or self.number("failures"):
            self.rebind()
        elif self.state == "suspended":
            try:
                self.request("resume")
            except OSError:
                self.rebind()
        self.write("timeout_ms", str(TIMEOUT_MS))


def _write(path, text):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def sh(*command, check=True, timeout=60 * SLOWNESS * SHARE, input=None):
    """Runs a command, which has to be there and to succeed; returns what it printed."""
    if not shutil.which(command[0]):
        raise Skip(f"{command[0]} is not installed")
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout,
                            input=input)
    if check and result.returncode:
        raise Fail(f"{' '.join(map(str, command))}: {result.stdout}{result.stderr}")
    return result.stdout


def switch_processor(online, state):
    """Takes a processor off, or brings it back, by its file; "0" or "1"."""

    def done():
        try:
            online.write_text(state)
        except OSError as error:
            # On a busy machine it is refused once in some hundred times, and not the next time.
            require(error.errno == errno.EBUSY, f"{online}: {error}")
            print(f"# {online}: {error}", flush=True)
            return False
        return True

    wait_for(done, f"{online} is {state}", 5 * PROMPT)


_devices = []


def devices():
    """All devices that can be suspended."""
    modules.load()
    return list(_devices)


def device(revision=None, mailbox=False, **parameters):
    """A device with that revision of the feature, which a test device can be told to have.

    The other parameters are those of the module.
    """
    modules.load(**parameters)
    found = [d for d in _devices if not mailbox or d.mailbox]
    if not found:
        raise Skip("no test device" if mailbox else "no device that can be suspended")
    if revision is None:
        for dev in found:
            if dev.mailbox or dev.read("revision") in REVISIONS:
                return dev
        raise Skip("no device offers SUSPEND")
    for dev in found:
        if dev.read("revision") == revision:
            return dev
    for dev in found:
        if dev.mailbox:
            dev.configure(offer=OFFER[revision])
            return dev
    raise Skip(f"no device with revision {revision}")


# Modules.


class Modules:
    """rust_virtio, and the drivers that use it: virtio_rng, others where they are wanted.

    They are found by modprobe, or in the directory VIRTIO_SUSPEND_MODULES, or where the tree
    builds them. A driver of the same name that came with the kernel makes room.
    """

    CORE, DRIVER, SAMPLE = "rust_virtio", "virtio_rng", "rust_virtio_suspend"
    REFLECTOR = "rust_virtio_reflector"
    BLOCK, INPUT = "virtio_blk", "virtio_input"
    TESTER = "virtio_suspend_test"
    DIRECTORIES = {
        DRIVER: "drivers/char/hw_random",
        BLOCK: "drivers/block",
        INPUT: "drivers/input",
        SAMPLE: "samples/rust",
        REFLECTOR: "samples/rust",
        TESTER: "drivers/virtio",
        CORE: "",
    }
    # Parameters of the core, which are fixed when it is loaded.
    DEFAULTS = {"draft": 1, "recover": 1}

    def __init__(self):
        self.parameters = dict(self.DEFAULTS)
        self.were_loaded = self.are_loaded()
        # Whether virtio_blk is to be loaded, and its parameters.
        self.want_block = False
        self.block_parameters = {}
        # Whether virtio_input is to be loaded.
        self.want_input = False

    def are_loaded(self):
        return Path(f"/sys/module/{self.CORE}/holders/{self.DRIVER}").exists()

    def directory(self):
        release = os.uname().release
        places = [os.environ.get("VIRTIO_SUSPEND_MODULES"), HERE.parents[3] / "out" / release]
        for place in filter(None, places):
            if (Path(place) / f"{self.CORE}.ko").exists():
                return Path(place)
        return None

    @functools.cached_property
    def is_indexed(self):
        """Whether modprobe finds our driver rather than the kernel's."""
        command = ["modprobe", "--show-depends", self.DRIVER]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return self.CORE in result.stdout

    def insert(self, name, *parameters):
        if self.is_indexed:
            command = ["modprobe", name, *parameters]
        else:
            directory = self.directory()
            if not directory:
                raise Skip(f"module {name} is not installed: see the README")
            path = directory / self.DIRECTORIES[name] / f"{name}.ko"
            command = ["insmod", str(path), *parameters]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        require(result.returncode == 0, f"{command}: {result.stderr.strip()}")

    @staticmethod
    def remove(name):
        if Path(f"/sys/module/{name}").exists():
            command = ["rmmod", name]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            require(result.returncode == 0, f"{command}: {result.stderr.strip()}")

    def load(self, **parameters):
        """Has the modules loaded with these parameters."""
        wanted = self.DEFAULTS | parameters
        if self.are_loaded():
            if wanted == self.parameters:
                self.load_block()
                self.load_input()
                return
            self.unload()
        self.remove(self.DRIVER)
        if not Path(f"/sys/module/{self.CORE}").exists():
            changed = wanted.items() - self.DEFAULTS.items()
            self.insert(self.CORE, *(f"{name}={value}" for name, value in changed))
            self.parameters = wanted
        self.insert(self.DRIVER)
        self.load_block()
        self.load_input()
        for dev in _devices:
            wait_for(lambda: dev.is_bound, f"{dev.name} is bound")
            dev.write("timeout_ms", str(TIMEOUT_MS))

    def load_block(self, **parameters):
        """Has virtio_blk loaded with these parameters, where it is wanted."""
        if not self.want_block:
            return
        if Path(f"/sys/module/{self.CORE}/holders/{self.BLOCK}").exists():
            if parameters == self.block_parameters:
                return
            self.remove(self.BLOCK)
        # The kernel's own driver, if it is loaded, makes room.
        self.remove(self.BLOCK)
        self.insert(self.BLOCK, *(f"{name}={value}" for name, value in parameters.items()))
        self.block_parameters = parameters

    def load_input(self):
        """Has virtio_input loaded, where it is wanted."""
        if not self.want_input:
            return
        if not Path(f"/sys/module/{self.CORE}/holders/{self.INPUT}").exists():
            self.remove(self.INPUT)
            self.insert(self.INPUT)

    def unload(self):
        samples = (self.TESTER, self.SAMPLE, self.REFLECTOR)
        for name in (self.INPUT, self.BLOCK, *samples, self.DRIVER, self.CORE):
            self.remove(name)


modules = Modules()


# Children: whoever may have to wait is a process of its own, which can be killed.


class Child:
    """Runs a function in a child, which exits with the errno of its failure, or 0."""

    running = []

    def __init__(self, function, *args):
        sys.stdout.flush()
        self.status = None
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(0)
            try:
                function(*args)
                os._exit(0)
            except OSError as error:
                os._exit(error.errno)
            except BaseException:
                traceback.print_exc()
                os._exit(255)
        Child.running.append(self)

    def poll(self):
        """The exit status, negative for a signal; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                Child.running.remove(self)
        return self.status

    def wait(self, within=PROMPT, what="a child ends"):
        wait_for(lambda: self.poll() is not None, what, within)
        return self.status

    def errno(self, within=PROMPT, what="a child ends"):
        """The name of the error it ended with, or "success"."""
        status = self.wait(within, what)
        return errno_name(status) if status else "success"

    def signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)

    @classmethod
    def kill_all(cls):
        for child in list(cls.running):
            child.kill()
            child.wait(within=15, what="a killed child is gone")


def request_in_child(dev, goal):
    """Requests something in a child, and waits until that is under way."""
    child = Child(dev.request, goal)
    via = {"suspend": "suspending", "resume": "resuming"}[goal]
    wait_for(lambda: dev.state == via, f"{dev.name} is {via}")
    return child


def request_without_end(dev, goal):
    """Requests in a child what the test device is far from doing, and waits until it is under way."""
    if goal == "resume":
        dev.request("suspend")
    dev.need_mailbox().set(**{f"delay_{goal}_ms": FAR_MS})
    dev.write("timeout_ms", str(2 * FAR_MS))
    return request_in_child(dev, goal)


# Entropy.


def rng_names():
    names = (HWRNG_CLASS / "rng_available").read_text().split()
    return [name for name in names if name.startswith("virtio_rng")]


def set_rng(name):
    _write(HWRNG_CLASS / "rng_current", name + "\n")


def quiet():
    """Nobody reads entropy, the kernel's own thread included: devices are idle."""
    try:
        set_rng("none")
    except OSError:
        raise Skip("the hwrng core can't be told to use no device") from None


def read_some(size=64):
    """What can be read without waiting, None if nothing can."""
    fd = os.open(HWRNG, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def drain():
    """Reads until there is nothing more, of a device that delivers nothing now."""
    for _ in range(8):
        if not read_some(256):
            return
    raise Fail("entropy without end from a device that delivers none")


def in_process(dev):
    """How many buffers of its first virtqueue a test device has in process."""
    return dev.mailbox.stats()["queues"][0]["in_process"]


def hold_a_buffer(dev, take=lambda data: None):
    """Has a test device take a buffer that it does not finish; `take` gets what is read for that."""
    dev.need_mailbox().set(hold=True)

    def held():
        while data := read_some():
            take(data)
        return dev.mailbox.stats()["queues"][0]["in_process"] == 1

    wait_for(held, f"{dev.name} has a buffer in process")


def entropy_flows(what="entropy flows", size=256, within=5 * PROMPT):
    """More arrives than can have been buffered: the device delivers."""
    got = 0
    end = time.monotonic() + within
    while got < size:
        got += len(read_some(64) or b"")
        require(time.monotonic() < end, f"{what}: {got} of {size} bytes in {within} s")


def select_rng(dev):
    """Makes a running device the one that /dev/hwrng reads."""
    names = rng_names()
    require(names, "no virtio_rng is registered")
    if len(names) == 1:
        set_rng(names[0])
        return
    if not dev.mailbox:
        raise Skip("several sources of entropy, and no way to tell which is which")
    for name in names:
        set_rng(name)
        before = dev.mailbox.counters()["notify"][0]
        entropy_flows(f"{name} delivers")
        if dev.mailbox.counters()["notify"][0] > before:
            return
    raise Fail(f"none of {names} is {dev.name}")


def works(dev):
    """The device is in operation: it is running, and delivers."""
    expect(dev.state, "running", f"state of {dev.name}")
    if dev.driver == Modules.DRIVER:
        select_rng(dev)
        entropy_flows(f"{dev.name} delivers")


class Reader:
    """A child that reads /dev/hwrng in blocks, and hands on what it gets."""

    def __init__(self, size=64):
        self._pipe, writer = os.pipe()
        os.set_inheritable(writer, True)

        def read():
            os.close(self._pipe)
            fd = os.open(HWRNG, os.O_RDONLY)
            while True:
                data = os.read(fd, size)
                os.write(writer, data)

        self.child = Child(read)
        os.close(writer)

    def get(self, within=PROMPT):
        """The next block, None if none comes in that time."""
        if not select.select([self._pipe], [], [], within)[0]:
            return None
        return os.read(self._pipe, 65536)

    def block(self):
        """Takes what there is until no more comes; returns it."""
        data = b""
        while True:
            more = self.get(0.3)
            if not more:
                return data
            data += more
            require(len(data) < 1 << 20, "the reader does not block")

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        os.close(self._pipe)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# Running cases.


class KernelLog:
    """What the kernel logs from now on."""

    def __init__(self):
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = None

    def lines(self):
        lines = []
        while self._fd is not None:
            try:
                record = os.read(self._fd, 16384).decode(errors="replace")
                lines.append(record.split(";", 1)[-1].splitlines()[0])
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue
        return lines

    def complaints(self):
        return [line for line in self.lines() if COMPLAINT.search(line)]


_cases = []


def case(text, **parameters):
    """A case for each combination of the parameters' values, which the text can name."""

    def decorate(function):
        for values in itertools.product(*parameters.values()):
            arguments = dict(zip(parameters, values))
            _cases.append((text.format(**arguments), function, arguments))
        return function

    return decorate


def skip_all(reason):
    print(f"1..0 # SKIP {reason}")
    sys.exit(ksft.KSFT_SKIP)


def _load_or_skip():
    try:
        modules.load()
    except (Skip, Fail, OSError) as reason:
        skip_all(str(reason))


def _find_devices():
    found = sorted(BUS.glob("*/suspend/state")) if BUS.exists() else []
    _devices.extend(Device(path.parent.parent.name) for path in found)


def _restore():
    """Undoes whatever a case has done."""
    Child.kill_all()
    modules.load(**modules.parameters)
    for dev in _devices:
        dev.restore()
    if HWRNG_CLASS.exists():
        set_rng("")


def _objections():
    found = []
    for dev in _devices:
        if dev.mailbox:
            found += [f"{dev.name}: {objection}" for objection in dev.mailbox.objections()]
            dev.mailbox.clear()
    return found


def _expired(_signal, _frame):
    raise Fail(f"not done after {CASE_SECONDS} s")


def reasons(failure):
    """A failure, and what had failed before, when it was only the clearing up that failed, too."""
    while failure:
        yield str(failure) or repr(failure)
        hidden = failure.__suppress_context__
        failure = failure.__cause__ or (None if hidden else failure.__context__)


def _run_case(function, arguments, log):
    """Runs a case and cleans up; returns what went wrong."""
    problems = []

    def attempt(step, *args, **kwargs):
        try:
            return step(*args, **kwargs)
        except Skip:
            raise
        except Fail as failure:
            problems.extend(reasons(failure))
        except Exception:
            problems.extend(traceback.format_exc().splitlines())
        return None

    signal.signal(signal.SIGALRM, _expired)
    try:
        signal.alarm(CASE_SECONDS)
        attempt(function, **arguments)
    finally:
        signal.alarm(CASE_SECONDS)
        attempt(_restore)
        problems += attempt(_objections) or []
        signal.alarm(0)
    return problems + log.complaints()


def _selected():
    """The cases that the arguments of the program name by patterns, or all.

    kselftest's runner gives no arguments that have white space: the patterns, one in a line, may be
    in SUSPEND_CASES.
    """
    patterns = sys.argv[1:] or os.environ.get("SUSPEND_CASES", "").splitlines()
    chosen = [
        entry
        for entry in _cases
        if not patterns or any(fnmatch.fnmatchcase(entry[0], p) for p in patterns)
    ]
    if not chosen:
        sys.exit(f"no case is named {' or '.join(patterns)}")
    return chosen


def run(block=False, input=False):
    """Runs the cases of a file, or those that its arguments name by patterns, and exits.

    `block` has virtio_blk loaded, too, and `input` virtio_input.
    """
    cases = _selected()
    sys.stdout.reconfigure(line_buffering=True)
    ksft.print_header()
    if os.geteuid() != 0:
        skip_all("needs root")
    faulthandler.dump_traceback_later(FILE_SECONDS, exit=True)
    modules.want_block, modules.want_input = block, input
    if block or input:
        _load_or_skip()
    _find_devices()
    if not _devices:
        # A device of a driver that is there already would have been found.
        _load_or_skip()
        _find_devices()
    if not _devices:
        skip_all("no device that can be suspended")

    before = {dev.name: dev.read("timeout_ms") for dev in _devices}
    took = []
    log = KernelLog()
    ksft.set_plan(len(cases))
    try:
        _restore()
        _objections()
        for text, function, arguments in cases:
            began = time.monotonic()
            try:
                problems = _run_case(function, arguments, log)
            except Skip as reason:
                ksft.test_result_skip(text)
                ksft.print_msg(str(reason))
                continue
            for problem in problems:
                ksft.print_msg(problem)
            ksft.test_result(not problems, text)
            took.append((time.monotonic() - began, text))
        for seconds, text in heapq.nlargest(LONGEST, took):
            if seconds >= LONG:
                ksft.print_msg(f"{seconds:.0f} s: {text}")
    finally:
        modules.load()
        for dev in _devices:
            dev.write("timeout_ms", before[dev.name])
        if block:
            modules.remove(modules.BLOCK)
        if input:
            modules.remove(modules.INPUT)
        if not modules.were_loaded:
            modules.unload()
    ksft.finished()
