"""Draws the chart at the top of the notebook, from the network in the last checkpoint.

    python -m tools.draw_flowchart

Everything in it is real: the image is from the test-set, its crop is a distortion as in training, and
the rest is what the layers of the network make of that crop. CIFAR10_DATA_PATH and CIFAR10_SAVE_DIR
choose the folder of the data set and the folder of the checkpoints.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import ConnectionPatch

from tools.notebook import DATA_PATH, ROOT, run_cells

FOLDER = ROOT / "images"
NUM_CHANNELS_SHOWN = 16
COLOR = "#1f4e79"


def draw_channels(fig, left, channels):
    """Draw the liveliest channels of a layer's output in a grid."""
    size, gap = 0.034, 0.004
    aspect = fig.get_figwidth() / fig.get_figheight()
    shown = np.sort(np.argsort(channels.std(axis=(0, 1)))[-NUM_CHANNELS_SHOWN:])
    for i, channel in enumerate(shown):
        row, column = divmod(i, 4)
        bottom = 0.465 + aspect * ((1 - row) * (size + gap) + gap / 2)
        ax = fig.add_axes([left + column * (size + gap), bottom, size, aspect * size])
        ax.imshow(channels[:, :, channel], cmap="binary")
        ax.set(xticks=[], yticks=[])


def draw_neurons(fig, left, values):
    """Draw the outputs of a dense layer as a column of squares."""
    ax = fig.add_axes([left, 0.18, 0.045, 0.57])
    ax.imshow(values.reshape(-1, 8), cmap="binary", aspect="auto")
    return ax


def draw_probabilities(fig, left, probabilities, class_names, cls_true):
    """Draw the ten probabilities as bars beside the names of the classes."""
    ax = fig.add_axes([left, 0.18, 0.085, 0.57])
    colors = [COLOR if i == cls_true else "#b0b7bf" for i in range(len(class_names))]
    ax.barh(range(len(class_names)), probabilities, color=colors)
    ax.set(xlim=(0, 1.6), ylim=(9.6, -0.6), xticks=[], yticks=range(10))
    ax.set_yticklabels(class_names, fontsize=10)
    ax.get_yticklabels()[cls_true].set(color=COLOR, weight="bold")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for i, probability in enumerate(probabilities):
        if probability >= 0.005:
            ax.text(probability + 0.04, i, f"{probability:.2f}", va="center", fontsize=9)


def draw(notebook):
    """Return the figure of the chart."""
    network = notebook["network"]
    image, cls = notebook["get_test_image"](16)
    crop = notebook["pre_process"](image[np.newaxis], training=True, seed=[notebook["random_seed"], 10])

    def output(layer_name):
        layer = network.get_layer(layer_name)
        model = notebook["keras"].Model(network.inputs[0], layer.output)
        return model(crop, training=False).numpy()[0]

    fig = plt.figure(figsize=(14, 4.4))
    image_ax = fig.add_axes([0.01, 0.315, 0.1, 0.3])
    image_ax.imshow(image, interpolation="nearest")
    crop_ax = fig.add_axes([0.155, 0.35, 0.0735, 0.235])
    crop_ax.imshow(crop[0], interpolation="nearest")
    draw_channels(fig, 0.272, output("layer_conv1_relu"))
    draw_channels(fig, 0.472, output("layer_conv2_relu"))
    fc1_ax = draw_neurons(fig, 0.672, output("layer_fc1"))
    fc2_ax = draw_neurons(fig, 0.765, output("layer_fc2"))
    for ax in [image_ax, crop_ax, fc1_ax, fc2_ax]:
        ax.set(xticks=[], yticks=[])
    probabilities = notebook["tf"].nn.softmax(output("layer_softmax")).numpy()
    draw_probabilities(fig, 0.915, probabilities, notebook["class_names"], cls)

    columns = [
        (0.06, "Input image", "32 × 32 pixels\n3 colours"),
        (0.192, "Distorted", "random crop 24 × 24,\nflip and colours"),
        (0.348, "Convolution 1", f"24 × 24, 64 channels\n({NUM_CHANNELS_SHOWN} shown), then pooled"),
        (0.548, "Convolution 2", f"12 × 12, 64 channels\n({NUM_CHANNELS_SHOWN} shown), then pooled"),
        (0.6945, "Dense 1", "256 neurons"),
        (0.7875, "Dense 2", "128 neurons"),
        (0.93, "Softmax", "10 probabilities\n(blue: the true class)"),
    ]
    for x, title, size in columns:
        fig.text(x, 0.86, title, ha="center", fontsize=13, weight="bold", color=COLOR)
        fig.text(x, 0.09, size, ha="center", va="center", fontsize=10, color="#444444")

    for start, end in [
        (0.115, 0.15),
        (0.233, 0.266),
        (0.43, 0.466),
        (0.63, 0.666),
        (0.722, 0.759),
        (0.815, 0.852),
    ]:
        arrow = ConnectionPatch(
            (start, 0.465),
            (end, 0.465),
            "figure fraction",
            arrowstyle="-|>",
            mutation_scale=18,
            linewidth=2,
            color=COLOR,
        )
        fig.add_artist(arrow)
    return fig


def main():
    notebook = run_cells(DATA_PATH, os.environ.get("CIFAR10_SAVE_DIR", ROOT / "checkpoints"))
    if notebook["global_step"] == 0:
        sys.exit("There is no checkpoint, so train the network first, by `make run`.")
    fig = draw(notebook)
    plt.rcParams["svg.hashsalt"] = "cifar10_cnn"
    for name, options in [("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 110})]:
        fig.savefig(FOLDER / f"06_network_flowchart.{name}", facecolor="white", **options)
        print(FOLDER / f"06_network_flowchart.{name}")


if __name__ == "__main__":
    main()
