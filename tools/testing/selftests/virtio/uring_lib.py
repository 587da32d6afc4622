# SPDX-License-Identifier: GPL-2.0
"""io_uring, as much as reads and writes of blocks need: Documentation is io_uring(7)."""

import ctypes
import mmap
import os
import struct

from suspend_lib import Skip

SYS_SETUP, SYS_ENTER = 425, 426
SETUP_IOPOLL = 1 << 0
ENTER_GETEVENTS = 1 << 0
OFF_SQ_RING, OFF_CQ_RING, OFF_SQES = 0, 0x8000000, 0x10000000
OP_READ, OP_WRITE = 22, 23
SQE_SIZE = 64

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(*arguments):
    result = _libc.syscall(*(ctypes.c_long(a) for a in arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


class Requests:
    """Reads and writes, of one block each, of a file that is open with O_DIRECT."""

    FLAGS = 0

    def __init__(self, fd, block=4096, entries=8):
        self._fd, self._block = fd, block
        parameters = ctypes.create_string_buffer(120)
        struct.pack_into("<6I", parameters, 0, 0, 0, self.FLAGS, 0, 0, 0)
        try:
            self._ring = _syscall(SYS_SETUP, entries, ctypes.addressof(parameters))
        except OSError as error:
            raise Skip(f"no io_uring: {error}") from None
        count, cq_count = struct.unpack_from("<2I", parameters, 0)
        sq_off = struct.unpack_from("<8I", parameters, 40)
        cq_off = struct.unpack_from("<8I", parameters, 80)
        self._tail, self._array = sq_off[1], sq_off[6]
        self._cq_head, self._cq_tail = cq_off[0], cq_off[1]
        self._cq_mask, self._cqes = cq_off[2], cq_off[5]
        self._sq = mmap.mmap(self._ring, self._array + 4 * count, offset=OFF_SQ_RING)
        self._cq = mmap.mmap(self._ring, self._cqes + 16 * cq_count, offset=OFF_CQ_RING)
        self._sqes = mmap.mmap(self._ring, SQE_SIZE * count, offset=OFF_SQES)
        self._buffer = mmap.mmap(-1, block * entries)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))

    @staticmethod
    def _word(memory, offset):
        return struct.unpack_from("<I", memory, offset)[0]

    def _of(self, number):
        return slice(number * self._block, (number + 1) * self._block)

    def _fill(self, number, operation):
        """Request `number` is of the block of that number."""
        address = self._address + number * self._block
        struct.pack_into("<BBHiQQIIQ", self._sqes, number * SQE_SIZE, operation, 0, 0, self._fd,
                         number * self._block, address, self._block, 0, number)
        struct.pack_into("<I", self._sq, self._array + 4 * number, number)

    def submit(self, count, writes=None):
        """Reads the first blocks, or writes what is given for them, and does not wait."""
        for number in range(count):
            data = (writes or {}).get(number)
            if data is not None:
                self._buffer[self._of(number)] = data
            self._fill(number, OP_READ if data is None else OP_WRITE)
        struct.pack_into("<I", self._sq, self._tail, count)
        return _syscall(SYS_ENTER, self._ring, count, 0, 0, 0, 0)

    def data(self, number):
        """What has been read."""
        return self._buffer[self._of(number)]

    def ended(self):
        """How many have ended."""
        return self._word(self._cq, self._cq_tail) - self._word(self._cq, self._cq_head)

    def reap(self, count):
        """Waits until so many have ended; returns their results."""
        _syscall(SYS_ENTER, self._ring, 0, count, ENTER_GETEVENTS, 0, 0)
        head, tail = (self._word(self._cq, at) for at in (self._cq_head, self._cq_tail))
        mask = self._word(self._cq, self._cq_mask)
        return [
            struct.unpack_from("<Qi", self._cq, self._cqes + 16 * (index & mask))[1]
            for index in range(head, tail)
        ]


class PolledReads(Requests):
    """Reads of which nobody is notified when they have ended: who made them has to poll."""

    FLAGS = SETUP_IOPOLL
