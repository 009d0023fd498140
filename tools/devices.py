"""Several devices where there is only a processor, for the tests and the benchmarks."""

import tensorflow as tf

STRATEGY = 'tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))'
# The line that the notebook tells to write, for `tools.notebook.run_cells`.
MIRRORED = {"cifar10.data_path = ": f"{STRATEGY}\ncifar10.data_path = "}


def split_cpu():
    """Make two logical devices of the processor. Call it before TensorFlow computes anything."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
