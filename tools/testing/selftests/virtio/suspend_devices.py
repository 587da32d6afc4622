#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Several devices: each has its own state, deadline and revision."""

from suspend_lib import (
    FAR_MS,
    OFFER,
    PROMPT,
    REVISIONS,
    Child,
    Skip,
    case,
    devices,
    drain,
    expect,
    read_some,
    require,
    run,
    select_rng,
    works,
)



def pair(*revisions):
    found = [dev for dev in devices() if dev.mailbox] or devices()
    if len(found) < 2:
        raise Skip("there is only one device")
    first, second = found[:2]
    for dev, revision in zip((first, second), revisions):
        if dev.read("revision") != revision:
            dev.configure(offer=OFFER[revision])
            expect(dev.read("revision"), revision, f"revision of {dev.name}")
    return first, second


@case("{one} and {other}: the other one runs on", one=REVISIONS, other=REVISIONS)
def independent(one, other):
    first, second = pair(one, other)
    for suspended, running in ((first, second), (second, first)):
        before = running.attributes()
        # The source has to be chosen while both deliver: see select_rng().
        select_rng(running)
        suspended.request("suspend")
        works_as_selected(running)
        expect(running.attributes(), before, f"what the files of {running.name} say")
        suspended.request("resume")
        works(suspended)


def works_as_selected(dev):
    before = dev.mailbox.counters()["bytes"] if dev.mailbox else 0
    got = 0
    for _ in range(1000):
        got += len(read_some() or b"")
        if got >= 256:
            break
    require(got >= 256, f"{dev.name} delivers {got} bytes")
    if dev.mailbox:
        require(dev.mailbox.counters()["bytes"] > before, f"it was not {dev.name} that delivered")


@case("both are suspended: nothing can be read, until one is resumed")
def both():
    first, second = pair()
    select_rng(first)
    for dev in (first, second):
        dev.request("suspend")
    drain()
    expect(read_some(), None, "read with both suspended")
    second.request("resume")
    expect((first.state, second.state), ("suspended", "running"), "states")
    expect(read_some(), None, "read of the suspended one")
    first.request("resume")
    works_as_selected(first)
    works(second)


@case("one waits for its device, the other is quick")
def slow():
    first, second = pair()
    first.need_mailbox().set(delay_suspend_ms=FAR_MS)
    first.write("timeout_ms", "3000")
    expect(second.number("timeout_ms") != 3000, True, "the deadline is its own")
    child = Child(first.request, "suspend")
    for _ in range(3):
        second.request("suspend")
        second.request("resume")
    expect(child.poll(), None, "the slow one, when the other is done")
    expect(child.errno(3 + PROMPT), "ETIMEDOUT", "the slow one")
    expect((first.state, second.state), ("running", "running"), "states")
    works(first)
    works(second)


@case("unbinding one leaves the other suspended")
def unbind():
    first, second = pair()
    for dev in (first, second):
        dev.request("suspend")
    first.unbind()
    expect(second.state, "suspended", "state")
    first.bind()
    expect((first.state, second.state), ("running", "suspended"), "states")
    second.request("resume")
    works(first)
    works(second)


if __name__ == "__main__":
    run()
