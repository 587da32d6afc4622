# SPDX-License-Identifier: GPL-2.0
"""XDP programs and AF_XDP sockets, without libbpf.

    program = load(PASS)
    link = attach_link(program, "e0")     # detached when the last descriptor of it is closed
    attach(program, "e0")                 # stays
    detach("e0")
    xdp = XdpSocket("e0", ZERO_COPY)

All of it is about interfaces of the caller's network namespace.
"""

import ctypes
import errno
import mmap
import os
import socket
import struct

from suspend_lib import Skip

LIBC = ctypes.CDLL(None, use_errno=True)
# Of x86-64 and of whatever has the generic table.
SYS_BPF = {"x86_64": 321}.get(os.uname().machine, 280)
BPF_PROG_LOAD, BPF_LINK_CREATE = 5, 28
BPF_PROG_TYPE_XDP = 6
BPF_XDP = 37
# Generic XDP, that of the stack, and that of the driver.
GENERIC, NATIVE = 1 << 1, 1 << 2
# Of rtnetlink.
RTM_SETLINK, NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR = 19, 1, 4, 2
NLA_F_NESTED = 1 << 15
IFLA_XDP, IFLA_XDP_FD, IFLA_XDP_FLAGS = 43, 1, 3

# Of AF_XDP sockets.
AF_XDP, SOL_XDP = 44, 283
XDP_RX_RING, XDP_TX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 2, 3, 4, 5, 6
COPY, ZERO_COPY = 1 << 1, 1 << 2
FRAMES, FRAME_SIZE = 64, 4096

XDP_PASS = 2
REDIRECT_HELPER = 23


def instruction(code, registers=0, offset=0, immediate=0):
    return struct.pack("<BBhi", code, registers, offset, immediate)


def set_register(number, value):
    return instruction(0xB7, number, immediate=value)


EXIT = instruction(0x95)
PASS = set_register(0, XDP_PASS) + EXIT


def redirect_to(index):
    """A program that sends all packets out of the interface of that index."""
    call = instruction(0x85, immediate=REDIRECT_HELPER)
    return set_register(1, index) + set_register(2, 0) + call + EXIT


def _bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = LIBC.syscall(SYS_BPF, command, buffer, len(buffer))
    if result < 0:
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            raise Skip("the kernel has no bpf()")
        raise OSError(number, os.strerror(number))
    return result


def load(program):
    """Loads an XDP program; returns its descriptor."""
    instructions = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")
    return _bpf(
        BPF_PROG_LOAD,
        struct.pack(
            "<IIQQ", BPF_PROG_TYPE_XDP, len(program) // 8, ctypes.addressof(instructions),
            ctypes.addressof(licence),
        ),
    )  # fmt: skip


def need_programs():
    """Skips a case on a kernel that has no programs; a child can't."""
    os.close(load(PASS))


def need_sockets():
    """The same for sockets."""
    _socket().close()


def attach_link(program, interface, flags=NATIVE):
    """Attaches a program by a bpf_link; returns the descriptor of that."""
    index = socket.if_nametoindex(interface)
    return _bpf(BPF_LINK_CREATE, struct.pack("<IIII", program, index, BPF_XDP, flags))


def _attribute(kind, data):
    return struct.pack("<HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def attach(program, interface, flags=NATIVE):
    """Attaches a program, or detaches what there is for -1, as `ip link set ... xdp` does."""
    nested = _attribute(IFLA_XDP_FD, struct.pack("<i", program))
    nested += _attribute(IFLA_XDP_FLAGS, struct.pack("<I", flags))
    index = socket.if_nametoindex(interface)
    body = struct.pack("<BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
    body += _attribute(IFLA_XDP | NLA_F_NESTED, nested)
    header = struct.pack("<IHHII", 16 + len(body), RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(header + body)
        _, kind, _, _, _, error = struct.unpack_from("<IHHIIi", netlink.recv(4096))
    if kind == NLMSG_ERROR and error:
        raise OSError(-error, os.strerror(-error))


def detach(interface, flags=NATIVE):
    attach(-1, interface, flags)


def _socket():
    try:
        return socket.socket(AF_XDP, socket.SOCK_RAW)
    except OSError:
        raise Skip("the kernel has no AF_XDP") from None


class XdpSocket:
    """An AF_XDP socket with memory of its own, bound to a queue of an interface."""

    def __init__(self, interface, flags, queue=0):
        self._socket = _socket()
        self._memory = mmap.mmap(-1, FRAMES * FRAME_SIZE)
        self._address = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        region = struct.pack(
            "<QQIIII", ctypes.addressof(self._address), len(self._memory), FRAME_SIZE, 0, 0, 0
        )
        self._socket.setsockopt(SOL_XDP, XDP_UMEM_REG, region)
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING):
            self._socket.setsockopt(SOL_XDP, ring, FRAMES)
        index = socket.if_nametoindex(interface)
        address = struct.pack("<HHIII", AF_XDP, flags, index, queue, 0)
        if LIBC.bind(self._socket.fileno(), address, len(address)) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
