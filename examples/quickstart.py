"""Trains a small convolutional network on handwritten digits, stops half-way, and resumes.

Prints the accuracy on held-out digits, and writes `quickstart.png` and `quickstart.eqx`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from sklearn.datasets import load_digits

import eqopt

BATCH_SIZE = 64
NUM_EPOCHS = 30
PICTURE = Path("quickstart.png")
CHECKPOINT = Path("quickstart.eqx")


class Network(eqx.Module):
    """Two convolutions and two linear layers, for images of 8 by 8 pixels."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key: PRNGKeyArray) -> None:
        keys = jax.random.split(key, 4)
        self.conv1 = eqx.nn.Conv2d(1, 16, kernel_size=3, padding=1, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1, key=keys[1])
        self.hidden = eqx.nn.Linear(32 * 4 * 4, 64, key=keys[2])
        self.out = eqx.nn.Linear(64, 10, key=keys[3])
        self.dropout = eqx.nn.Dropout(0.3)

    def __call__(
        self, image: Float[Array, "1 8 8"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "10"]:
        x = jax.nn.relu(self.conv1(image))
        x = jax.nn.relu(self.conv2(x))
        x = jax.nn.relu(self.hidden(x.reshape(-1)))
        return self.out(self.dropout(x, key=key))


def loss_fn(
    model: Network, images: Float[Array, "b 1 8 8"], labels: Int[Array, " b"], key: PRNGKeyArray
) -> Float[Array, ""]:
    logits = jax.vmap(model)(images, jax.random.split(key, len(images)))
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


@eqx.filter_jit
def accuracy(
    model: Network, images: Float[Array, "b 1 8 8"], labels: Int[Array, " b"]
) -> Float[Array, ""]:
    logits = jax.vmap(eqx.nn.inference_mode(model))(images)
    return jnp.mean(jnp.argmax(logits, axis=1) == labels)


def epoch(images: np.ndarray, labels: np.ndarray, number: int) -> Iterator[Any]:
    """The training set once, shuffled as the epoch's number says."""
    order = np.random.default_rng(number).permutation(len(images))
    for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        yield images[chosen], labels[chosen]


def main() -> None:
    matplotlib.use("Agg")
    pixels, targets = load_digits(return_X_y=True)
    images = np.asarray(pixels / 16, np.float32).reshape(-1, 1, 8, 8)
    labels = np.asarray(targets, np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:-360], order[-360:]
    x_test, y_test = jnp.asarray(images[test]), jnp.asarray(labels[test])

    batches = [
        batch
        for number in range(NUM_EPOCHS)
        for batch in epoch(images[train], labels[train], number)
    ]
    schedule = eqopt.WarmupCosineDecay(
        peak_value=3e-3, warmup_steps=len(batches) // 10, decay_steps=len(batches)
    )
    matrices = eqopt.ByPath("**.weight") & eqopt.ByNdim(2)
    optimizer = eqopt.Chain(
        eqopt.ClipByGlobalNorm(1.0),
        eqopt.AdamW(schedule, weight_decay=1e-2, mask=matrices),
    )
    print(optimizer)

    model = Network(jax.random.key(0))
    fit = eqopt.fit(loss_fn, optimizer, model, batches, key=jax.random.PRNGKey(1), progress=True)
    print(f"train loss: {fit.history.loss[0]:.3f} -> {fit.history.loss[-20:].mean():.3f}")
    print(f"test accuracy: {100 * accuracy(fit.model, x_test, y_test):.1f} %")

    figure = eqopt.plot.history(fit.history)
    figure.savefig(PICTURE, dpi=120)
    print(f"picture: {PICTURE}")

    # Half of the same run, saved; then loaded, and run to its end.
    half = len(batches) // 2
    first = eqopt.fit(loss_fn, optimizer, model, batches[:half], key=jax.random.PRNGKey(1))
    eqx.tree_serialise_leaves(CHECKPOINT, (first.model, first.state, first.key))

    like = (model, optimizer.init(model), jax.random.PRNGKey(1))
    model, state, key = eqx.tree_deserialise_leaves(CHECKPOINT, like)
    second = eqopt.fit(loss_fn, optimizer, model, batches[half:], state=state, key=key)
    same = bool(eqx.tree_equal(second.model, fit.model))
    print(f"resumed from {CHECKPOINT}, bit-identical to the run in one go: {same}")


if __name__ == "__main__":
    main()
