"""Several devices where there is only a processor, for the tests and the benchmarks."""

import tensorflow as tf

from tools.exercises import read_changes

# The exercise's own change, for two logical devices of the processor.
TWO_DEVICES = {
    old: new.replace("MirroredStrategy()", 'MirroredStrategy(["CPU:0", "CPU:1"])')
    for old, new in read_changes()["several devices"].items()
}


def split_cpu():
    """Make two logical devices of the processor. Call it before TensorFlow computes anything."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
