"""Which system calls a program in the sandbox may not make, as a seccomp filter for bubblewrap.

A program is one process with one thread: whatever would make another is refused, so that its limit on memory is the limit, no fork
bomb starts, and nothing runs beside the tests. This holds for root too, which limits on the number of processes do not.
Sockets, memory that no limit counts, and doors into the kernel that no answer needs are refused as well.
"""

from __future__ import annotations

import errno
import platform
import struct

from pkt.errors import SandboxError

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED = {
    # processes and threads
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220),
    # network: besides the namespace without any, for some families of sockets know no namespaces
    "socket": (41, 198),
    # memory that belongs to no process
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
}  # fmt: skip
"""Numbers on x86_64 and aarch64; refused with EPERM."""
CLONE3 = 435
"""Refused as unknown: the C library then takes `clone`, which says why."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


def program() -> bytes:
    """The filter for this machine, in the kernel's form.

    Raises:
        SandboxError: a machine whose numbers of system calls are not known here.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise SandboxError(
            f"the sandbox knows the system calls of {' and '.join(ARCHITECTURES)}, and this machine is {machine or 'unknown'}; "
            f"run the programs elsewhere, or with --unsafe-no-sandbox"
        )
    place = list(ARCHITECTURES).index(machine)
    lines = [
        (_LOAD, 0, 0, 4),  # the architecture of the call
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # its number
        (_AT_LEAST, 0, 1, 0x40000000),  # x32, another table
        (_RETURN, 0, 0, _KILL),
    ]
    refused = {CLONE3: errno.ENOSYS}
    refused |= {number: errno.EPERM for numbers in DENIED.values() if (number := numbers[place]) is not None}
    for number, error in refused.items():
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
