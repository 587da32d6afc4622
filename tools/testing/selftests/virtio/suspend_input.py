#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Whatever is written to the files: what makes no sense is EINVAL and changes nothing.

And who may do what: root alone writes, anyone may read.
"""

import os
import stat

from suspend_lib import (
    Child,
    Fail,
    case,
    device,
    expect,
    expect_errno,
    run,
    works,
)

READ_ONLY = (
    "failures",
    "last_error",
    "last_resume_ns",
    "last_suspend_ns",
    "quirks",
    "recoveries",
    "resumes",
    "revision",
    "sleeps_kept",
    "sleeps_reset",
    "state",
    "suspends",
)
MODES = {name: 0o444 for name in READ_ONLY} | {
    "request": 0o200,
    "sleep": 0o644,
    "timeout_ms": 0o644,
}
NOBODY = 65534

GARBAGE = {
    "a newline": b"\n",
    "a blank": b" ",
    "blanks and a newline": b"  \t\n",
    "letters": b"xyzzy\n",
    "a NUL": b"\0",
    "binary": bytes(range(128, 256)),
    "all ones": b"\xff" * 16,
    "a format": b"%s%n%p\n",
    "a page of letters": b"x" * 4096,
    "more than a page of letters": b"x" * 10000,
    "more than a page of blanks": b" " * 10000,
}
REQUESTS = {
    "two words": b"suspend resume\n",
    "two lines": b"suspend\nresume\n",
    "two newlines": b"suspend\n\n",
    "a blank first": b" suspend\n",
    "a blank last": b"suspend \n",
    "capitals": b"SUSPEND\n",
    "a part": b"susp\n",
    "a longer word": b"suspended\n",
    "a state": b"running\n",
    "a number": b"1\n",
    "a NUL last": b"suspend\0",
    "a word and more than a page": b"suspend" + b" " * 10000,
    "a carriage return": b"suspend\r\n",
}
TIMEOUTS = {
    "0": b"0\n",
    "600001": b"600001\n",
    "-1": b"-1\n",
    "1e3": b"1e3\n",
    "1.5": b"1.5\n",
    "2^32 + 1": b"4294967297\n",
    "2^64 + 1": b"18446744073709551617\n",
    "a hundred digits": b"1" * 100,
    "more than a page of digits": b"1" * 10000,
    "more than a page of zeros": b"0" * 10000 + b"1",
    "a unit": b"100ms\n",
    "two numbers": b"100 200\n",
    "two lines": b"100\n200\n",
    "a blank first": b" 100\n",
    "a blank last": b"100 \n",
    "a NUL last": b"100\0",
}


def refuse(dev, name, inputs):
    before = dev.attributes()
    wrong = []
    for what, data in inputs.items():
        try:
            expect_errno("EINVAL", f"{name}: {what}", dev.write, name, data)
            expect(dev.attributes(), before, f"the files after {name}: {what}")
        except Fail as failure:
            wrong.append(str(failure))
    if wrong:
        raise Fail("; ".join(wrong))


@case("request, while {state}: garbage is EINVAL", state=("running", "suspended"))
def request(state):
    dev = device()
    if state == "suspended":
        dev.request("suspend")
    if dev.mailbox:
        dev.mailbox.clear()
    refuse(dev, "request", GARBAGE | REQUESTS)
    expect(dev.state, state, "state")
    if dev.mailbox:
        expect(dev.mailbox.status_log(), [], "accesses to the device status")
    if state == "suspended":
        dev.request("resume")
    works(dev)


@case("timeout_ms: garbage and what is out of range is EINVAL")
def timeout():
    refuse(device(), "timeout_ms", GARBAGE | TIMEOUTS)


@case("timeout_ms: {value} is taken", value=(1, 2, 599999, 600000))
def timeout_range(value):
    dev = device()
    dev.write("timeout_ms", f"{value}\n")
    expect(dev.read("timeout_ms"), str(value), "timeout_ms")
    dev.write("timeout_ms", "1234")
    expect(dev.read("timeout_ms"), "1234", "timeout_ms without a newline")


@case("a write of nothing changes nothing")
def nothing():
    dev = device()
    before = dev.attributes()
    for name in ("request", "timeout_ms"):
        expect(dev.write(name, b""), 0, f"write to {name}")
    expect(dev.attributes(), before, "what the files say")


@case("the directory has these files, with these modes")
def modes():
    directory = device().path / "suspend"
    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir()}
    expect(found, MODES, "files and modes")


@case("one value each: a line, and no more")
def one_line():
    dev = device()
    for name in sorted(MODES.keys() - {"request"}):
        text = dev.file(name).read_text()
        expect((text.count("\n"), text[-1:]), (1, "\n"), f"newlines in {name}")


@case("root can't write what is read-only, nor read request")
def root():
    dev = device()
    for name in READ_ONLY:
        expect_errno("EACCES", f"open {name}", os.open, dev.file(name), os.O_WRONLY)
    expect_errno("EACCES", "open request", os.open, dev.file("request"), os.O_RDONLY)


def as_nobody(function, *args):
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    function(*args)


@case("another user can read")
def user_reads():
    dev = device()
    for name in sorted(MODES.keys() - {"request"}):
        expect(Child(as_nobody, dev.read, name).errno(), "success", f"read {name}")


@case("another user can't write: EACCES")
def user_writes():
    dev = device()
    before = dev.attributes()
    for name, data in (("request", "suspend"), ("timeout_ms", "77"), ("state", "suspended")):
        expect(Child(as_nobody, dev.write, name, data).errno(), "EACCES", f"write {name}")
    expect(dev.attributes(), before, "what the files say")


if __name__ == "__main__":
    run()
