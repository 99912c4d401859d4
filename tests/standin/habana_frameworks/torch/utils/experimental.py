"""STAND-IN: reports a Gaudi 2, since optimum-habana refuses an unknown device."""

from habana_frameworks.torch import hpu  # noqa: F401


class synDeviceType:  # noqa: N801 (Habana's name)
    """Kinds of devices."""

    synDeviceGaudi = 1  # noqa: N815
    synDeviceGaudi2 = 2  # noqa: N815
    synDeviceGaudi3 = 3  # noqa: N815


def _get_device_type():
    return synDeviceType.synDeviceGaudi2


def _is_fp16_supported():
    return True
