"""A process that locks HPU modules and holds them until it gets a message or is killed."""

from sweep.ray_backend.device_locks import DeviceLocks

EIGHT = [str(index) for index in range(8)]


def hold(folder, count, pipe):
    held = DeviceLocks(folder)
    pipe.send(held.acquire(EIGHT, count))
    pipe.recv()
