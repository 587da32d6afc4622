#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The driver that tests devices, virtio_suspend_test: what it says of a test device.

Of one that keeps the rules it complains of nothing. Of one that breaks a rule it complains of that,
and of nothing else: the fault is set, and has taken effect. The judge of the test device is off
while the driver has it, because it breaks the rules for drivers on purpose.
"""

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from suspend_lib import (
    BUS,
    OFFER,
    SHARE,
    SLOWNESS,
    Child,
    Device,
    Skip,
    _write,
    case,
    device,
    expect,
    expect_errno,
    modules,
    require,
    run,
    sh,
    wait_for,
)

import blk_lib

DRIVER = Path("/sys/bus/virtio/drivers/virtio_suspend_test")
DEBUGFS = Path("/sys/kernel/debug/virtio_suspend_test")
# Every fault there is, not only the one of each kind.
LONG = "DEVICE_TEST_LONG" in os.environ
# How long the device may take to answer, and is watched, in milliseconds.
DEADLINE_MS = 400 * SLOWNESS * SHARE
STILL_MS = 30
# For faults that take effect meanwhile, and the middle of that.
LONG_STILL_MS = 100
AMID_MS = 60
# For how long a buffer is in process, and how long the device is watched then.
HOLD_MS, HOLD_STILL_MS = 30, 60
# The same where it has to be in process no longer than until SUSPEND is written, and more buffers than
# a case has in process then, but for those of bursts.
BRIEFLY_MS, HELD = 10, 8
CYCLES = 20
# For how long a suspend is under way, where something is to come in between.
QUIESCE_MS = 20
RESULT = re.compile(r"(ok|not ok) (\d+) (\S+) ([a-z-]+)(.*)")


def fast(text, **parameters):
    """A case that is left out on a slow kernel, where those that are left take long enough."""
    return case(text, **parameters) if SLOWNESS == 1 or LONG else lambda function: function


class Bench:
    """A device that is bound to the driver."""

    def __init__(self, dev):
        self.dev = dev
        self.directory = DEBUGFS / dev.name

    def run(self, what="all"):
        _write(self.directory / "run", what + "\n")

    def cases(self):
        return [line.split()[0] for line in (self.directory / "cases").read_text().splitlines()]

    def results(self):
        return (self.directory / "results").read_text()

    def said(self):
        """The results, for a message of a test, where they are not to be taken for others."""
        lines = (f"# | {line}" for line in self.results().splitlines())
        return "\n".join(["what it said:", *lines])

    def verdicts(self):
        """What became of each case: "ok", "not ok" or "skip"; as the plan of the KTAP has it."""
        found = {}
        for match in map(RESULT.fullmatch, self.results().splitlines()):
            if match:
                word, number, _, name, rest = match.groups()
                expect(int(number), len(found) + 1, "number")
                found[name] = "skip" if rest.startswith(" # SKIP") else word
        require(f"1..{len(found)}\n" in self.results(), f"not {len(found)} planned; {self.said()}")
        return found

    def failed(self):
        return {name for name, verdict in self.verdicts().items() if verdict == "not ok"}

    def passed(self):
        return {name for name, verdict in self.verdicts().items() if verdict == "ok"}

    def offer(self, bits):
        """Has a test device offer others: what it offers changes at a reset."""
        self.dev.mailbox.set(offer=bits)
        # It is bound anew, in which the driver breaks no rule.
        _write(DRIVER / "unbind", self.dev.name)
        _write(DRIVER / "bind", self.dev.name)


@contextlib.contextmanager
def bench(dev, **parameters):
    """Has the device bound to the driver; afterwards it is as it was."""
    parameters = {"deadline_ms": DEADLINE_MS, "still_ms": STILL_MS, "cycles": CYCLES} | parameters
    words = [f"{name}={value}" for name, value in parameters.items()]
    modules.insert(modules.TESTER, f"device={dev.name}", *words)
    try:
        dev.unbind()
        if dev.mailbox:
            dev.mailbox.set(judge="off")
        _write(DRIVER / "bind", dev.name)
        yield Bench(dev)
    finally:
        modules.remove(modules.TESTER)
        if dev.mailbox:
            dev.mailbox.set(**dev.settings)
            dev.mailbox.clear()
        dev.bind()


@contextlib.contextmanager
def passing(dev, *judged):
    """The driver complains of nothing, and has judged each rule, and these cases."""
    with bench(dev) as tester:
        tester.run()
        expect(list(tester.verdicts()), tester.cases(), "cases")
        expect(tester.failed(), set(), tester.said())
        rules = {line.split()[2] for line in tester.results().splitlines() if line[:3] == "ok "}
        require({"V1", "V2", "V3", "V5"} <= rules, f"rules: {rules}")
        expect(set(judged) - tester.passed(), set(), tester.said())
        unjudged = dev.mailbox.stats()["unjudged"]
        require(unjudged > 0, "the driver has broken no rule")
        yield tester


def passes(dev, *judged):
    with passing(dev, *judged):
        pass


class Interface(Device):
    """A network device, which is that of the kernel's own driver."""

    DRIVER = "virtio_net"

    @property
    def is_bound(self):
        return any((self.path / "net").glob("*"))

    def bind(self):
        _write(Path(f"/sys/bus/virtio/drivers/{self.driver}/bind"), self.name)
        wait_for(lambda: self.is_bound, f"{self.name} is bound")

    @classmethod
    def find(cls):
        if not Path(f"/sys/module/{cls.DRIVER}").exists():
            sh("modprobe", cls.DRIVER)
        for path in sorted(BUS.iterdir()):
            if (path / "driver").resolve().name == cls.DRIVER:
                dev = cls(path.name)
                if dev.mailbox:
                    return dev
        raise Skip("no test device is a network device")


# Where a device of a type is found.
FIND = {
    "entropy": lambda: device("1.4", mailbox=True),
    "disk": lambda: blk_lib.disk().dev,
    "interface": Interface.find,
}


def entropy(revision, ring, *judged):
    dev = device(revision, mailbox=True)
    dev.configure(ring=ring)
    passes(dev, "cycles", "queue-reset", "driver-notifications", "split", *judged)


@case("1.4, packed: an entropy device passes")
def ratified():
    entropy("1.4", "packed", "resume-kept", "packed")


@fast("draft, split: an entropy device passes")
def draft():
    entropy("draft", "split")


def carried_out(disk):
    """The kinds of requests that a disk has carried out."""
    return {kind for kind in disk.report()["requests"] if disk.requests(kind)}


@fast("a disk passes, and is only read")
def disk():
    target = blk_lib.disk()
    with passing(target.dev, "cycles", "config-writes") as tester:
        expect(carried_out(target) - {"get-id"}, {"in"}, "requests")
        expect(tester.verdicts()["written-data"], "skip", tester.said())


@fast("a disk whose data may be lost is written, and read back")
def written():
    target = blk_lib.disk()
    with bench(target.dev, data="lost") as tester:
        tester.run("written-data")
        expect(tester.passed(), {"written-data"}, tester.said())
        require({"in", "out"} <= carried_out(target), f"requests: {carried_out(target)}")


@fast("an interface passes")
def interface():
    passes(Interface.find(), "cycles", "some-queues", "buffers-unchanged")


@fast("a device that offers nothing is skipped, and why is said")
def nothing():
    with bench(device(mailbox=True)) as tester:
        tester.offer("none")
        tester.run()
        expect(set(tester.verdicts().values()), {"skip"}, tester.said())
        reasons = {line.partition("# SKIP ")[2] for line in tester.results().splitlines()
                   if line.startswith("ok ")}
        expect(reasons, {"the device does not offer SUSPEND"}, "reasons")
        require("# SUSPEND: not offered\n" in tester.results(), tester.said())


@dataclass
class Broken:
    """Faults, and the cases that fail by them: none if they break no rule."""

    rule: str
    faults: list
    fail: set
    revision: str = "1.4"
    settings: dict = field(default_factory=dict)
    type: str = "entropy"
    # What it shows is shown by another one, too.
    is_long: bool = False

    def __str__(self):
        return f"{self.revision}, {', '.join(self.faults)}"


def several(rule, fail, others=(), **settings):
    """Faults, each by the cases that fail by it: each of its own, and, which is quicker, all at once.

    The `others` are there with each of them.
    """
    others = list(others)
    yield Broken(rule, [*fail, *others], set().union(*fail.values()), settings=settings)
    for fault, cases in fail.items():
        yield Broken(rule, [fault, *others], cases, settings=settings, is_long=True)


# What only a reset helps, and no answer of VIRTIO 1.4.
LEFT = ("status-zero", "features-ok-dropped")
RESUMES = {"resume-kept", "resume"}
# The cases in which the device has to work, without which others can't be judged.
WORKING = {"not-negotiated", "before-features-ok", "before-driver-ok", "reset"} | RESUMES

BROKEN = [
    Broken("V1", ["suspend-stored"], {"not-negotiated", "before-features-ok", "before-driver-ok"}),
    Broken("V2", ["used-irq-lost"], {"notified"}),
    # What goes on has to take its time, or it is over before anybody looks.
    Broken("V2", ["works-while-suspended", f"hold-ms={HOLD_MS}"],
           {"in-process", "rings-unchanged"}),
    *several("V2", {
        f"in-process-lost={HELD}": {"burst", "split", "packed"},
        "avail-lost": {"unconsumed"},
    }, [f"hold-ms={BRIEFLY_MS}"], ring="packed"),
    Broken("V2", ["writes-lost", f"hold-ms={BRIEFLY_MS}"], {"written-data"}, type="disk"),
    Broken("V2", ["used-after-suspend=5"], WORKING, is_long=True),
    Broken("V2", ["used-irq-late=10"], set(), is_long=True),
    # Then it is what is made available meanwhile that tells.
    Broken("V3", ["works-while-suspended"], {"driver-notifications"}),
    *several("V3", {
        f"used-irq-after-suspend={AMID_MS}": {"used-notifications"},
        "buffers-written=5": {"buffers-unchanged"},
    }),
    # It is a change, notified too early, and not when it should be.
    Broken("V3", [f"config-change-while-suspended={AMID_MS}"],
           {"config-unchanged", "config-notifications", "config-change"}),
    Broken("V3", ["used-irq-spurious"], set(), is_long=True),
    Broken("V3", ["config-writes-taken"], {"config-writes"}, type="disk"),
    Broken("V4", ["config-change-during-suspend=5", "config-irq-lost"], {"config-change"}),
    # None that could be held back, and one that need not be.
    Broken("V4", ["config-change-before-suspend"], set()),
    Broken("V4", ["config-change-after-suspend"], set(), is_long=True),
    Broken("V5", ["suspend-ignored"], {"suspend"}),
    Broken("V5", ["suspend-never"], {"suspend"}, is_long=True),
    Broken("V5", ["driver-ok-kept"], {"suspend"}, is_long=True),
    *(Broken("V5", [f"{fault}-on-suspend"], {"suspend"}, is_long=True) for fault in LEFT),
    *(Broken("V5", [f"{fault}-while-suspended=5"], {"stays"}, is_long=True) for fault in LEFT),
    *(Broken("V5", [f"{fault}-on-resume"], RESUMES, is_long=True) for fault in LEFT),
    *(Broken("V5", [f"needs-reset-{moment}"], set(), is_long=True)
      for moment in ("on-suspend", "while-suspended=5", "on-resume")),
    *(Broken("V5", [f"{fault}=20"], set(), is_long=True)
      for fault in ("suspend-late", "resume-late", "reset-late")),
    Broken("V5", [f"resume-late={2 * DEADLINE_MS}"], RESUMES, is_long=True),
    Broken("V5", ["config-irq-lost"], {"needs-reset"}, settings={"refuse_suspend": True}),
    Broken("V5", ["suspend-dropped=5"], {"stays"}),
    *several("V5", {
        "reset-keeps-stopped": {"reset"},
        "resume-needs-kept": {"resume-cleared"},
        "status-write-resumes": {"status-writes"},
        "suspend-twice-cancels": {"suspend-twice"},
        "cancel-stops": {"resume-at-once"},
        "queue-reset-stops": {"queue-reset"},
        # More often than any other case has it suspend.
        "suspend-wears-out=10": {"cycles"},
    }, delay_suspend_ms=QUIESCE_MS),
    Broken("V5", ["suspend-needs-queues"], {"no-queues"}, is_long=True),
    Broken("V5", ["suspend-needs-queues=2"], {"no-queues", "some-queues"}, type="interface"),
    Broken("V5", ["resume-never"], RESUMES, is_long=True),
    Broken("V5", ["resume-needs-clear"], {"resume-kept"}, is_long=True),
    Broken("V5", ["suspend-dropped=5"], {"stays"}, "draft", is_long=True),
    Broken("V5", ["resume-never"], {"resume"}, "draft"),
]
# How long the device is watched for them.
STILLS = {"V2": HOLD_STILL_MS, "V3": LONG_STILL_MS}


def breaks(tester, broken):
    """By a fault these cases fail, and no others."""
    dev = tester.dev
    dev.mailbox.set(faults=broken.faults, **broken.settings)
    tester.run()
    for fault in broken.faults:
        require(dev.mailbox.happened(fault), f"{broken}: {fault} never took effect")
    expect(tester.failed(), broken.fail, f"{broken}: {tester.said()}")
    print(f"# {broken}: {', '.join(sorted(broken.fail)) or 'nothing'}", flush=True)
    dev.mailbox.set(faults=[], **{name: dev.settings[name] for name in broken.settings})


# On a slow kernel one will do.
@case("{rule}: by a fault its cases fail, and no others",
      rule=sorted({broken.rule for broken in BROKEN}) if SLOWNESS == 1 or LONG else ["V1"])
def faults(rule):
    chosen = [b for b in BROKEN if b.rule == rule and (LONG or not b.is_long)]
    for name, find in FIND.items():
        group = [broken for broken in chosen if broken.type == name]
        if not group:
            continue
        with bench(find(), still_ms=STILLS.get(rule, STILL_MS), data="lost") as tester:
            revision = "1.4"
            for broken in group:
                if broken.revision != revision:
                    revision = broken.revision
                    tester.offer(OFFER[revision])
                breaks(tester, broken)


@fast("each case that is judged fails by one of these faults")
def complete():
    with bench(device("1.4", mailbox=True)) as tester:
        known = [line.split() for line in (tester.directory / "cases").read_text().splitlines()]
    judged = {name for name, rule, *_ in known if rule != "-"}
    expect(judged, set().union(*(broken.fail for broken in BROKEN)), "cases")


@fast("a device that refuses, or that changes meanwhile, does so as it should")
def as_it_should():
    dev = device("1.4", mailbox=True)
    with bench(dev) as tester:
        for judged, settings in (
            ("needs-reset", {"refuse_suspend": True}),
            ("config-change", {"faults": ["config-change-during-suspend=5"]}),
        ):
            dev.mailbox.set(**(dev.settings | {"judge": "off"} | settings))
            tester.run()
            expect(tester.failed(), set(), tester.said())
            expect(tester.verdicts()[judged], "ok", tester.said())


@dataclass
class Like:
    """A device that is like one elsewhere, and what is said of it."""

    name: str
    revision: str
    fail: set
    # Which fault takes effect, and what the test device is told besides.
    fault: str
    settings: dict
    is_long: bool = False

    def __str__(self):
        return f"like {self.name}: {', '.join(sorted(self.fail)) or 'nothing'} is complained of"


# The table of Documentation/virtio/device-authors.rst.
LIKES = [
    Like("crosvm", "draft", {"driver-notifications"}, "works-while-suspended", {}),
    Like("crosvm", "draft", {"in-process", "rings-unchanged"}, "works-while-suspended",
         {"faults": [f"hold-ms={HOLD_MS}"]}, is_long=True),
    Like("5bsd", "1.4", set(), "writes-dropped", {"delay_suspend_ms": 5}),
    Like("qemu-2025", "1.4", {"suspend"}, "status-zero-on-suspend", {}),
]


@fast("what is said of devices that are like those elsewhere")
def likes():
    with bench(device("1.4", mailbox=True), still_ms=HOLD_STILL_MS) as tester:
        dev = tester.dev
        for like in (like for like in LIKES if LONG or not like.is_long):
            dev.mailbox.set(**(dev.settings | {"judge": "off"}))
            dev.mailbox.set(like=like.name, **like.settings)
            tester.offer(OFFER[like.revision])
            tester.run()
            require(dev.mailbox.happened(like.fault), f"{like}: {like.fault} never took effect")
            expect(tester.failed(), like.fail, f"{like}: {tester.said()}")
            print(f"# {like}", flush=True)


def run_without_end(tester):
    """Has a child run a case that waits for the device, which does not answer."""
    tester.dev.mailbox.set(faults=["suspend-never"])
    child = Child(tester.run, "suspend")
    wait_for(lambda: tester.dev.mailbox.happened("suspend-never"), "a run is under way")
    return child


@fast("what is written to the files, and what errors there are")
def files():
    dev = device("1.4", mailbox=True)
    with bench(dev, deadline_ms=60_000) as tester:
        expect_errno("ENOENT", "a case that is not there", tester.run, "nonsense")
        expect_errno("EINVAL", "a name that is too long", tester.run, "x" * 65)
        tester.run("suspend")
        expect(tester.verdicts(), {"suspend": "ok"}, "one case")
        # It would wait for long, but for the signal.
        child = run_without_end(tester)
        expect_errno("EBUSY", "a run is under way", tester.run, "suspend")
        child.kill()
        child.wait()
        dev.mailbox.set(faults=[])
        tester.run("suspend")
        expect(tester.verdicts(), {"suspend": "ok"}, "one case")


@case("the driver is unbound during a run")
def unbound():
    dev = device("1.4", mailbox=True)
    with bench(dev, deadline_ms=60_000) as tester:
        child = run_without_end(tester)
        _write(DRIVER / "unbind", dev.name)
        expect(child.errno(), "ENODEV", "the run")
        require(not tester.directory.exists(), "the files are still there")


@fast("it binds no other device than the one that it is told")
def other():
    dev = device("1.4", mailbox=True)
    with bench(dev):
        others = [path for path in DRIVER.glob("virtio*")]
        expect([path.name for path in others], [dev.name], "bound devices")


if __name__ == "__main__":
    run(block=True)
