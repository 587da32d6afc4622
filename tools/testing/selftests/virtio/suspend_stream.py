# SPDX-License-Identifier: GPL-2.0
"""The stream of a test device that delivers a counter: every word is accounted for."""

import contextlib
from pathlib import Path

from suspend_lib import Fail, Reader, drain, require, select_rng

BLOCK = 64


class Account:
    """Keeps the books of the counter that a test device delivers.

    The kernel's own thread reads, too, seldom: its switches tell whether it has run, and only
    then may words be missing that it can have got.
    """

    def __init__(self):
        self._thread = None
        self._switches = self._of_thread()
        # What was read at a time, and whether the thread had run since the last time.
        self._parts = []

    def _of_thread(self):
        """How often the thread has been switched away from, and which one it is."""
        status = self._status_of(self._thread)
        if not status:
            self._thread = next(filter(self._status_of, Path("/proc").glob("[0-9]*/status")), None)
            status = self._status_of(self._thread)
        return self._thread, status

    @staticmethod
    def _status_of(path):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except (AttributeError, OSError):
            return None
        if fields["Name"].strip() != "hwrng":
            return None
        return fields["voluntary_ctxt_switches"], fields["nonvoluntary_ctxt_switches"]

    def add(self, data):
        require(len(data) % BLOCK == 0, f"{len(data)} bytes, no whole blocks")
        words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        switches = self._of_thread()
        self._parts.append((words, switches != self._switches))
        self._switches = switches

    def check(self):
        expected = None
        strict = 0
        # The thread may be seen to have run only by the next look. Or by the one before: that comes
        # after what was read before, and the thread may have run in between.
        looks = [False, *(moved for _, moved in self._parts), self._of_thread() != self._switches]
        for number, (words, _) in enumerate(self._parts):
            may_lack = any(looks[number : number + 3])
            strict += not may_lack
            for word in words:
                if expected is not None and word != expected:
                    lost = word - expected
                    if lost < 0 or not may_lack:
                        raise Fail(f"part {number}: got word {word}, expected {expected}")
                expected = word + 1
        require(expected is not None, "nothing was read")
        require(2 * strict >= len(self._parts), "the kernel's own thread reads all the time")


def accounted(scenario, dev):
    """Runs a scenario that adds what it reads to an account, which is checked at the end."""
    dev.configure(data="counter")
    # The counter begins with a reset; the core may keep bytes from before.
    dev.rebind()
    select_rng(dev)
    dev.request("suspend")
    drain()
    dev.request("resume")
    account = Account()
    scenario(dev, account)
    account.check()


@contextlib.contextmanager
def reading(dev, account):
    """A reader, of which the account has all in the end."""
    reader = Reader(BLOCK)
    try:
        yield reader
    finally:
        # It is killed while it waits.
        dev.request("suspend")
        account.add(reader.block())
        reader.close()
        dev.request("resume")


def whole(reader, request, goal):
    """What a reader gets in the meantime."""
    request(goal)
    data = b""
    while len(data) % BLOCK or not data:
        more = reader.get(0.1)
        if more is None:
            break
        data += more
    return data
