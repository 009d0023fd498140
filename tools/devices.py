"""Several devices where there is only a processor, for the tests and the benchmarks."""

import tensorflow as tf

from tools.exercises import read_changes


def several_devices(strategy):
    """Return the exercise's own change, with another strategy in the place of MirroredStrategy()."""
    changes = read_changes()["several devices"]
    return {old: new.replace("MirroredStrategy()", strategy) for old, new in changes.items()}


TWO_DEVICES = several_devices('MirroredStrategy(["CPU:0", "CPU:1"])')


def split_cpu():
    """Make two logical devices of the processor, and hide GPUs, before TensorFlow computes anything."""
    tf.config.set_visible_devices([], "GPU")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
