"""A directory mounted a second time, with the habits of a network file system: Linux and root only.

    python tests/helpers/network_mount.py DIRECTORY MOUNT_POINT SECONDS LOCKS

Serves the kernel's FUSE protocol (`include/uapi/linux/fuse.h`, version 7.31) from a process of its
own until the mount point is unmounted. Like an NFS client, the kernel keeps what it was told about
names, sizes and listings for some seconds, absent names included, whatever others do meanwhile; it
asks again when a file is opened ("close to open"). Locks are refused with ENOLCK where LOCKS is
`none`, and are the host's own where it is `local`: then two mounts do not see each other's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT_NODE = 1
MAX_WRITE = 128 * 1024
FLAGS = {"local": 1 << 0 | 1 << 3 | 1 << 5, "none": 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 10}
"""Asynchronous reads, O_TRUNC at open, big writes; `none` also asks for both kinds of locks."""
KEEP_CACHE, CACHE_LISTING = 1 << 1, 1 << 3
NO_REPLY = object()


class Server:
    """Answers the kernel's requests about one mount from a directory."""

    def __init__(self, directory: Path, device: int, seconds: float, locks: str) -> None:
        self.device = device
        self.seconds = seconds
        self.flags = FLAGS[locks]
        self.paths = {ROOT_NODE: str(directory)}
        self.nodes = {str(directory): ROOT_NODE}
        self.listings: dict[int, list[tuple[str, int, int]]] = {}
        self.next_node = ROOT_NODE + 1

    def serve(self) -> None:
        """Answer until the mount is gone."""
        while True:
            try:
                request = os.read(self.device, MAX_WRITE + 4096)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                return
            _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
            handler = HANDLERS.get(opcode)
            code, body = 0, b""
            try:
                if handler is None:
                    code = errno.ENOSYS
                elif (answer := handler(self, node, request[40:])) is NO_REPLY:
                    continue
                else:
                    body = answer
            except OSError as error:
                code, body = error.errno or errno.EIO, b""
            with contextlib.suppress(OSError):
                os.write(self.device, struct.pack("=IiQ", 16 + len(body), -code, unique) + body)

    def notify_changed(self, node: int) -> None:
        """Have the kernel ask for a file's attributes again."""
        body = struct.pack("=Qqq", node, -1, 0)
        with contextlib.suppress(OSError):
            os.write(self.device, struct.pack("=IiQ", 16 + len(body), 2, 0) + body)

    # Names

    def path(self, node: int, name: bytes = b"") -> str:
        """The path of a node, or of a name in it."""
        if node not in self.paths:
            raise OSError(errno.ESTALE, "stale")
        return os.path.join(self.paths[node], os.fsdecode(name)) if name else self.paths[node]

    def node_of(self, path: str) -> int:
        """The number of a path, a new one where it has none."""
        if path not in self.nodes:
            self.nodes[path] = self.next_node
            self.paths[self.next_node] = path
            self.next_node += 1
        return self.nodes[path]

    def move(self, old: str, new: str) -> None:
        """Rename a path and all below it among the nodes."""
        self.forget(new)
        for path in [p for p in self.nodes if p == old or p.startswith(f"{old}/")]:
            node = self.nodes.pop(path)
            self.paths[node] = new + path[len(old) :]
            self.nodes[self.paths[node]] = node

    def forget(self, path: str) -> None:
        """Drop the number of a path that is gone; open files keep theirs."""
        node = self.nodes.pop(path, None)
        if node is not None:
            self.paths.pop(node, None)

    # Answers

    def attributes(self, stat: os.stat_result) -> bytes:
        times = (stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns)
        return struct.pack(
            "=6Q10I", stat.st_ino, stat.st_size, stat.st_blocks, *(t // 10**9 for t in times),
            *(t % 10**9 for t in times), stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid,
            0, 4096, 0,
        )  # fmt: skip

    def entry(self, path: str) -> bytes:
        stat = os.lstat(path)
        seconds, nanoseconds = int(self.seconds), int(self.seconds % 1 * 1e9)
        head = (self.node_of(path), 0, seconds, seconds, nanoseconds, nanoseconds)
        return struct.pack("=QQQQII", *head) + self.attributes(stat)

    def attribute_answer(self, stat: os.stat_result) -> bytes:
        head = struct.pack("=QII", int(self.seconds), int(self.seconds % 1 * 1e9), 0)
        return head + self.attributes(stat)


def _names(body: bytes) -> list[bytes]:
    return body.split(b"\0")


def _init(server: Server, node: int, body: bytes) -> bytes:
    ahead = struct.unpack_from("=I", body, 8)[0]
    return struct.pack(
        "=IIIIHHIIHHI7I", 7, 31, ahead, server.flags, 12, 9, MAX_WRITE, 1, 32, 0, 0, *[0] * 7
    )


def _lookup(server: Server, node: int, body: bytes) -> bytes:
    path = server.path(node, _names(body)[0])
    try:
        return server.entry(path)
    except FileNotFoundError:
        # That a name is absent is kept as long as anything else.
        seconds = (int(server.seconds), 0, int(server.seconds % 1 * 1e9), 0)
        return struct.pack("=QQQQII", 0, 0, *seconds) + bytes(88)


def _getattr(server: Server, node: int, body: bytes) -> bytes:
    flags, _, handle = struct.unpack_from("=IIQ", body)
    stat = os.fstat(handle) if flags & 1 else os.lstat(server.path(node))
    return server.attribute_answer(stat)


def _setattr(server: Server, node: int, body: bytes) -> bytes:
    valid, _, handle, size, _, atime, mtime, _, ans, mns, _, mode, _, uid, gid, _ = (
        struct.unpack_from("=IIQQQQQQ8I", body)
    )
    target: int | str = handle if valid & 64 else server.path(node)
    if valid & 1:
        os.chmod(target, mode & 0o7777)
    if valid & 6:
        os.chown(target, uid if valid & 2 else -1, gid if valid & 4 else -1)
    if valid & 8:
        os.truncate(target, size)
    if valid & (16 | 32):
        old, now = os.stat(target), time.time_ns()
        given = (now if valid & 128 else atime * 10**9 + ans, now if valid & 256 else
                 mtime * 10**9 + mns)  # fmt: skip
        kept = (old.st_atime_ns, old.st_mtime_ns)
        ns = tuple(new if valid & bit else was for new, was, bit in zip(given, kept, (16, 32),
                                                                        strict=True))  # fmt: skip
        os.utime(target, ns=(ns[0], ns[1]))
    return server.attribute_answer(os.stat(target))


def _readlink(server: Server, node: int, body: bytes) -> bytes:
    return os.fsencode(os.readlink(server.path(node)))


def _symlink(server: Server, node: int, body: bytes) -> bytes:
    name, target = _names(body)[:2]
    os.symlink(target, server.path(node, name))
    return server.entry(server.path(node, name))


def _mknod(server: Server, node: int, body: bytes) -> bytes:
    mode, device = struct.unpack_from("=II", body)
    path = server.path(node, _names(body[16:])[0])
    os.mknod(path, mode, device)
    return server.entry(path)


def _mkdir(server: Server, node: int, body: bytes) -> bytes:
    mode, umask = struct.unpack_from("=II", body)
    path = server.path(node, _names(body[8:])[0])
    os.mkdir(path, mode & ~umask)
    return server.entry(path)


def _unlink(server: Server, node: int, body: bytes) -> bytes:
    path = server.path(node, _names(body)[0])
    os.unlink(path)
    server.forget(path)
    return b""


def _rmdir(server: Server, node: int, body: bytes) -> bytes:
    path = server.path(node, _names(body)[0])
    os.rmdir(path)
    server.forget(path)
    return b""


def _rename(server: Server, node: int, body: bytes, skip: int = 8) -> bytes:
    target = struct.unpack_from("=Q", body)[0]
    old, new = _names(body[skip:])[:2]
    paths = server.path(node, old), server.path(target, new)
    os.rename(*paths)
    server.move(*paths)
    return b""


def _rename_with_flags(server: Server, node: int, body: bytes) -> bytes:
    if struct.unpack_from("=I", body, 8)[0]:
        raise OSError(errno.EINVAL, "an NFS server knows no flags of a rename")
    return _rename(server, node, body, 16)


def _link(server: Server, node: int, body: bytes) -> bytes:
    path = server.path(node, _names(body[8:])[0])
    os.link(server.path(struct.unpack_from("=Q", body)[0]), path)
    return server.entry(path)


def _open(server: Server, node: int, body: bytes) -> bytes:
    flags = struct.unpack_from("=I", body)[0]
    # O_APPEND would ignore the offsets that the kernel sends.
    handle = os.open(server.path(node), flags & ~os.O_APPEND & ~os.O_CREAT & ~os.O_EXCL)
    server.notify_changed(node)
    return struct.pack("=QII", handle, 0, 0)


def _create(server: Server, node: int, body: bytes) -> bytes:
    flags, mode, umask = struct.unpack_from("=III", body)
    path = server.path(node, _names(body[16:])[0])
    handle = os.open(path, (flags & ~os.O_APPEND) | os.O_CREAT, mode & ~umask)
    return server.entry(path) + struct.pack("=QII", handle, 0, 0)


def _read(server: Server, node: int, body: bytes) -> bytes:
    handle, offset, size = struct.unpack_from("=QQI", body)
    return os.pread(handle, size, offset)


def _write(server: Server, node: int, body: bytes) -> bytes:
    handle, offset, size = struct.unpack_from("=QQI", body)
    return struct.pack("=II", os.pwrite(handle, body[40 : 40 + size], offset), 0)


def _statfs(server: Server, node: int, body: bytes) -> bytes:
    found = os.statvfs(server.paths[ROOT_NODE])
    counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
    return struct.pack("=5Q10I", *counts, found.f_bsize, 255, found.f_frsize, *[0] * 7)


def _release(server: Server, node: int, body: bytes) -> bytes:
    os.close(struct.unpack_from("=Q", body)[0])
    return b""


def _fsync(server: Server, node: int, body: bytes) -> bytes:
    os.fsync(struct.unpack_from("=Q", body)[0])
    return b""


def _nothing(server: Server, node: int, body: bytes) -> bytes:
    return b""


def _no_answer(server: Server, node: int, body: bytes) -> object:
    return NO_REPLY


def _no_locks(server: Server, node: int, body: bytes) -> bytes:
    raise OSError(errno.ENOLCK, "no locks")


def _opendir(server: Server, node: int, body: bytes) -> bytes:
    path = server.path(node)
    rows = [(".", os.stat(path).st_ino, 4), ("..", 1, 4)]
    with os.scandir(path) as entries:
        rows += [(row.name, row.inode(), row.stat(follow_symlinks=False).st_mode >> 12) for row in
                 entries]  # fmt: skip
    handle = server.next_node
    server.next_node += 1
    server.listings[handle] = rows
    return struct.pack("=QII", handle, KEEP_CACHE | CACHE_LISTING, 0)


def _readdir(server: Server, node: int, body: bytes) -> bytes:
    handle, offset, size = struct.unpack_from("=QQI", body)
    rows = server.listings[handle][offset:]
    parts, length = [], 0
    for number, (name, inode, kind) in enumerate(rows, offset + 1):
        encoded = os.fsencode(name)
        row = struct.pack("=QQII", inode, number, len(encoded), kind) + encoded
        row += bytes(-len(row) % 8)
        if (length := length + len(row)) > size:
            break
        parts.append(row)
    return b"".join(parts)


def _releasedir(server: Server, node: int, body: bytes) -> bytes:
    server.listings.pop(struct.unpack_from("=Q", body)[0], None)
    return b""


HANDLERS: dict[int, Callable[[Server, int, bytes], object]] = {
    1: _lookup, 2: _no_answer, 3: _getattr, 4: _setattr, 5: _readlink, 6: _symlink, 8: _mknod,
    9: _mkdir, 10: _unlink, 11: _rmdir, 12: _rename, 13: _link, 14: _open, 15: _read, 16: _write,
    17: _statfs, 18: _release, 20: _fsync, 25: _nothing, 26: _init, 27: _opendir, 28: _readdir,
    29: _releasedir, 30: _nothing, 31: _no_locks, 32: _no_locks, 33: _no_locks, 34: _nothing,
    35: _create, 36: _no_answer, 38: _nothing, 42: _no_answer, 45: _rename_with_flags,
}  # fmt: skip
"""By the number of the request."""


def permitted() -> bool:
    """Whether this process may mount: root, with the device."""
    return os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


@contextlib.contextmanager
def mounted(directory: Path, point: Path, seconds: float, locks: str) -> Iterator[Path]:
    """The directory at `point` while the block runs; `seconds` is how long the kernel remembers."""
    point.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, __file__, str(directory), str(point), str(seconds), locks]
    server = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        if said != b"mounted\n":
            raise RuntimeError(f"no mount at {point}: {said!r}")
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def main(directory: str, point: str, seconds: str, locks: str) -> None:
    """Mount, say so, and serve."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"network", os.fsencode(point), b"fuse", 6, options):
        print(os.strerror(ctypes.get_errno()), flush=True)
        return
    print("mounted", flush=True)
    Server(Path(directory), device, float(seconds), locks).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
