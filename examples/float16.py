"""Trains the network of `quickstart.py` in float32, and in float16 with a dynamic loss scale.

Prints the accuracy of both on held-out digits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from quickstart import accuracy, epoch, loss_fn, Network
from sklearn.datasets import load_digits

import eqopt

NUM_EPOCHS = 15


def half_loss_fn(
    model: Network, images: Float[Array, "b 1 8 8"], labels: Int[Array, " b"], key: PRNGKeyArray
) -> Float[Array, ""]:
    """The network in float16, its loss in float32, as the mean over a batch wants it."""
    logits = jax.vmap(model)(images.astype(jnp.float16), jax.random.split(key, len(images)))
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def main() -> None:
    pixels, targets = load_digits(return_X_y=True)
    images = np.asarray(pixels / 16, np.float32).reshape(-1, 1, 8, 8)
    labels = np.asarray(targets, np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:-360], order[-360:]
    x_test, y_test = jnp.asarray(images[test]), jnp.asarray(labels[test])
    batches = [x for i in range(NUM_EPOCHS) for x in epoch(images[train], labels[train], i)]
    schedule = eqopt.WarmupCosineDecay(
        peak_value=3e-3, warmup_steps=len(batches) // 10, decay_steps=len(batches)
    )

    optimizer = eqopt.AdamW(schedule, weight_decay=1e-2)
    model = Network(jax.random.key(0))
    fit = eqopt.fit(loss_fn, optimizer, model, batches, key=jax.random.key(1))
    print(f"float32: {100 * accuracy(fit.model, x_test, y_test):.1f} %")

    half = eqopt.precision.cast_floating(model, jnp.float16)
    optimizer = eqopt.precision.MasterWeights(optimizer)
    state, scale, skipped = (
        optimizer.init(half),
        eqopt.precision.DynamicScale(growth_interval=100),
        0,
    )
    keys = jax.random.split(jax.random.key(1), len(batches))
    for (x, y), key in zip(batches, keys, strict=True):
        scale, finite, half, state, _ = scale.scaled_step(
            optimizer, half_loss_fn, half, state, x, y, key=key
        )
        skipped += not finite
    # Evaluated in float32, which is exact: every float16 is a float32.
    wide = eqopt.precision.cast_floating(half, jnp.float32)
    print(f"float16: {100 * accuracy(wide, x_test, y_test):.1f} %")
    print(f"{skipped} of {len(batches)} steps overflowed and were skipped; scale: {scale.scale:g}")


if __name__ == "__main__":
    main()
