"""A process that takes HPU modules and holds them until it is told to end, or killed."""

from sweep.ray_backend.device_locks import DeviceLocks

EIGHT = [str(index) for index in range(8)]


def hold(folder, count, pipe):
    held = DeviceLocks(folder)
    pipe.send(held.take(EIGHT, count))
    pipe.recv()
