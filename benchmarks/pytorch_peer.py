"""The network of the notebook in PyTorch, in a fast form for a CPU.

Distortions on whole batches, images and weights channels-last, fused Adam. The distortions can also be
compiled, which is faster; the network compiled is slower, so it is left as it is. This program is a
benchmark and nothing else: it needs PyTorch, which the notebook doesn't.
"""

import torch
from torch import nn
from torch.nn import functional

BATCH_SIZE = 64
CROPPED = 24


def main_network():
    """The same layers with the same initial distributions, as a torch module from NCHW images."""
    network = nn.Sequential(
        nn.Conv2d(3, 64, 5, padding="same"),
        nn.BatchNorm2d(64, eps=0.001),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2304, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(network[-1].weight)
    network[1].weight.requires_grad_(False)  # No gamma.
    return network.to(memory_format=torch.channels_last)


def trainable(network):
    """The parameters of a network that are trained."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def rgb_to_hsv(images):
    """Convert [n, 3, h, w] between 0 and 1."""
    value, _ = images.max(dim=1)
    minimum, _ = images.min(dim=1)
    span = value - minimum
    divisor = torch.where(span > 0, span, torch.ones_like(span))
    red, green, blue = images.unbind(dim=1)
    hue = torch.where(
        red == value,
        (green - blue) / divisor,
        torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    saturation = torch.where(value > 0, span / value.clamp(min=1e-30), torch.zeros_like(span))
    return (hue / 6) % 1, saturation, value


def hsv_to_rgb(hue, saturation, value):
    """Convert back to [n, 3, h, w]."""
    hue = 6 * hue
    distances = [(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()]
    return torch.stack([value * (1 - saturation * (1 - d.clamp(0, 1))) for d in distances], dim=1)


def pre_process(images):
    """Distort a batch [n, 3, 32, 32] as the notebook does, with a draw of its own for each image."""
    number = len(images)

    def uniform(low, high):
        return torch.empty(number, 1, 1).uniform_(low, high)

    top, left = torch.randint(0, 32 - CROPPED + 1, (2, number, 1))
    rows, columns = top + torch.arange(CROPPED), left + torch.arange(CROPPED)
    flip = torch.rand(number, 1) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    index = torch.arange(number)[:, None, None]
    images = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    hue, saturation, value = rgb_to_hsv(images)
    images = hsv_to_rgb((hue + uniform(-0.05, 0.05)) % 1, saturation, value)
    mean = images.mean(dim=(2, 3), keepdim=True)
    images = (images - mean) * uniform(0.3, 1.0)[:, None] + mean
    images = images + uniform(-0.2, 0.2)[:, None]
    hue, saturation, value = rgb_to_hsv(images)
    images = hsv_to_rgb(hue, (saturation * uniform(0.0, 2.0)).clamp(0, 1), value)
    return images.clamp(0, 1).contiguous(memory_format=torch.channels_last)


class Trainer:
    """Trains the network on uint8 images [n, 32, 32, 3] with class-numbers [n], given as NumPy arrays.

    With `compiled` the distortions are compiled by torch.compile, which needs a compiler for C++. With
    `lower` the network calculates with 16 bits.
    """

    def __init__(self, pixels, cls, compiled=False, lower=False):
        self.lower = lower
        self.pre_process = torch.compile(pre_process) if compiled else pre_process
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        self.cls = torch.from_numpy(cls)
        self.network = main_network()
        self.optimizer = torch.optim.Adam(trainable(self.network), lr=1e-4, eps=1e-8, fused=True)

    def train_step(self):
        index = torch.randint(0, len(self.pixels), (BATCH_SIZE,))
        images = self.pre_process(self.pixels[index].float() / 255)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.lower):
            logits = self.network(images)
        loss = functional.cross_entropy(logits.float(), self.cls[index])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def train_steps(self, number):
        for _ in range(number):
            self.train_step()


########################################################################
# The best network of the exercises.


def wide_network(widths):
    """The layers of the notebook's exercise *wider*, as a torch module from NCHW images between 0 and 1."""
    layers = [nn.Conv2d(3, 24, 2), nn.GELU()]
    layers[0].weight.requires_grad_(False)
    channels = 24
    for width in widths:
        for pool in ([nn.MaxPool2d(2)], []):
            normalize = nn.BatchNorm2d(width, eps=1e-5)
            normalize.weight.requires_grad_(False)
            layers += [nn.Conv2d(channels, width, 3, padding="same", bias=False), *pool, normalize, nn.GELU()]
            channels = width
    network = nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(channels, 10, bias=False))
    return network.to(memory_format=torch.channels_last)


class WideTrainer:
    """Trains that network as the notebook does, from uint8 images [n, 32, 32, 3] with class-numbers [n]."""

    def __init__(self, pixels, cls, widths, batch_size):
        self.pixels, self.cls = torch.from_numpy(pixels), torch.from_numpy(cls)
        self.batch_size = batch_size
        self.network = wide_network(widths)
        self.optimizer = torch.optim.SGD(
            trainable(self.network), lr=0.1, momentum=0.85, nesterov=True, weight_decay=0.01, fused=True
        )
        self.flips = torch.rand(len(pixels)) < 0.5
        self.batches = iter(())

    def next_batch(self):
        """The numbers of the images of the next batch, from all in a new order."""
        index = next(self.batches, None)
        if index is None:
            self.batches = iter(torch.randperm(len(self.pixels)).split(self.batch_size))
            self.flips = ~self.flips
            index = next(self.batches)
        return index

    def pre_process(self, index):
        """Move each image by up to two pixels, reflected at the edges, and flip some of them."""
        images = self.pixels[index].permute(0, 3, 1, 2).float() / 255
        images = functional.pad(images, (2, 2, 2, 2), "reflect").permute(0, 2, 3, 1)
        top, left = torch.randint(0, 5, (2, len(index), 1))
        rows, columns = top + torch.arange(32), left + torch.arange(32)
        columns = torch.where(self.flips[index, None], columns.flip(1), columns)
        images = images[torch.arange(len(index))[:, None, None], rows[:, :, None], columns[:, None, :]]
        return 4 * images.permute(0, 3, 1, 2) - 2  # The memory stays channels-last.

    def train_step(self):
        index = self.next_batch()
        logits = self.network(self.pre_process(index)) / 9
        loss = functional.cross_entropy(logits, self.cls[index], label_smoothing=0.2)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter is not self.network[0].bias and parameter.ndim == 1:
                    parameter.grad *= 64
        self.optimizer.step()

    def train_steps(self, number):
        for _ in range(number):
            self.train_step()
