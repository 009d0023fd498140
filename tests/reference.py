"""What the tests compare with: the calculations in NumPy, in float64, and what the original program left."""

import colorsys

import numpy as np
import tensorflow as tf

from tests.conftest import SHARED
from tests.toy import original_name, values_of, write

ORIGINAL = SHARED / "original"
CHECKPOINT = ORIGINAL / "cifar10_cnn-1000"


def weights_of(network):
    """The values of a network's variables by their names in the original program."""
    return {original_name(v): v.numpy().astype(np.float64) for v in network.variables}


def state(notebook):
    """All variables of a training, to the bit."""
    return [v.numpy().tobytes() for v in [*notebook.network.variables, *notebook.optimizer.variables]]


def original_checkpoint(folder, step=1000, without=None):
    """The path and the values of the original checkpoint, or of one made up after other iterations."""
    values = values_of(CHECKPOINT)
    if step == 1000 and not without:
        return CHECKPOINT, values
    random = np.random.default_rng(step)
    for name, value in values.items():
        if value.ndim:
            values[name] = value * random.uniform(0.5, 1.5, value.shape).astype(np.float32)
    values["global_step"] = values["global_step"].dtype.type(step)
    with np.errstate(under="ignore"):  # After 150,000 iterations they are zero.
        for name, beta in (("beta1_power", 0.9), ("beta2_power", 0.999)):
            values[name] = np.float32(beta) ** np.float32(step + 1)
    values.pop(without, None)
    path = folder / f"cifar10_cnn-{step}"
    write(path, values)
    return path, values


def change_colors(image, hue=0.0, saturation=1.0):
    """Add to the hue of each pixel, and multiply its saturation, by Python's own colorsys."""
    result = image.copy()
    for pixel in result.reshape(-1, 3):
        if pixel.max() > 0:  # Else it is black in the end.
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            pixel[:] = colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v)
    return result


def distort_image(image, top, left, is_flipped, hue, contrast, brightness, saturation):
    """The distortions for training of one image between 0 and 1."""
    image = image[top : top + 24, left : left + 24].astype(np.float64)
    image = change_colors(image[:, ::-1] if is_flipped else image, hue=hue)
    mean = image.mean(axis=(0, 1))
    image = (image - mean) * contrast + mean + brightness
    return np.clip(change_colors(image, saturation=saturation), 0, 1)


def distort(images, seed):
    """The distortions of a batch, with the numbers that tf.image draws for each image."""
    result = []
    for image, image_seed in zip(images, tf.random.split(seed, num=len(images)), strict=True):
        crop, *seeds = tf.random.split(image_seed, num=6)
        corner = tf.random.stateless_uniform([3], crop, maxval=2**31 - 1, dtype=tf.int32).numpy() % 9
        ranges = [(0, 1), (-0.05, 0.05), (0.3, 1.0), (-0.2, 0.2), (0.0, 2.0)]
        flip, *colors = (
            float(tf.random.stateless_uniform([], seed, *limits))
            for seed, limits in zip(seeds, ranges, strict=True)
        )
        result.append(distort_image(image, *corner[:2], flip < 0.5, *colors))
    return np.array(result)


def convolve(images, values, layer):
    """5 x 5 convolution with padding."""
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    weights, bias = (values[f"network/{layer}/{kind}"] for kind in ("weights", "bias"))
    return np.einsum("nhwcij,ijco->nhwo", windows, weights, optimize=True) + bias


def max_pool(images):
    number, height, width, channels = images.shape
    return images.reshape(number, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def forward(network, images, training):
    """The whole network, or the values of its variables by their original names, on pre-processed images.

    Returns the numbers before the softmax, and the mean and variance of the batch.
    """
    values = network if isinstance(network, dict) else weights_of(network)
    x = convolve(images.astype(np.float64), values, "layer_conv1")
    mean, variance = used = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    name = "network/layer_conv1/batch_normalize/"
    if not training:
        used = values[name + "moving_mean"], values[name + "moving_variance"]
    x = (x - used[0]) / np.sqrt(used[1] + 0.001) + values[name + "beta"]
    x = max_pool(np.maximum(x, 0))
    x = max_pool(np.maximum(convolve(x, values, "layer_conv2"), 0)).reshape(len(images), -1)
    for layer in ("layer_fc1", "layer_fc2", "fully_connected"):
        x = x @ values[f"network/{layer}/weights"] + values[f"network/{layer}/bias"]
        x = x if layer == "fully_connected" else np.maximum(x, 0)
    return x, mean, variance


def cross_entropy(logits, cls):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_softmax[np.arange(len(cls)), cls].mean()


def adam(value, m, v, gradient, step):
    """An update in TensorFlow 1's form: epsilon is added outside the bias correction."""
    rate = 1e-4 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient**2
    return value - rate * m / (np.sqrt(v) + 1e-8), m, v
