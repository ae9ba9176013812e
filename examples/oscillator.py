"""Fits a physical model to data: a damped pendulum, watched with a noisy camera.

    python examples/oscillator.py [folder for the picture]

The model is a differential equation with four unknowns: the damping, the natural frequency, and
where the pendulum started, how fast. Every evaluation integrates it. `eqopt.minimize` finds the
unknowns; `oscillator.png` shows fit and convergence.
"""

import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float

import eqopt

NOISE = 0.05


class Pendulum(eqx.Module):
    """Swings by $\\ddot q = -2 d \\dot q - \\omega^2 \\sin q$."""

    log_damping: Float[Array, ""]
    log_frequency: Float[Array, ""]
    angle: Float[Array, ""]
    velocity: Float[Array, ""]

    def __call__(self, times: Float[Array, " n"]) -> Float[Array, " n"]:
        """Gives the angles at equidistant times, by the classical Runge-Kutta method."""
        damping, frequency = jnp.exp(self.log_damping), jnp.exp(self.log_frequency)
        dt = times[1] - times[0]

        def rate(q: Array) -> Array:
            return jnp.stack([q[1], -2 * damping * q[1] - frequency**2 * jnp.sin(q[0])])

        def step(q: Array, _: None) -> tuple[Array, Array]:
            k1 = rate(q)
            k2 = rate(q + dt / 2 * k1)
            k3 = rate(q + dt / 2 * k2)
            k4 = rate(q + dt * k3)
            return q + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), q[0]

        _, angles = jax.lax.scan(step, jnp.stack([self.angle, self.velocity]), None, times.size)
        return angles


def pendulum(damping: float, frequency: float, angle: float, velocity: float) -> Pendulum:
    numbers = np.log(damping), np.log(frequency), angle, velocity
    return Pendulum(*(jnp.asarray(x, jnp.float32) for x in numbers))


def misfit(
    model: Pendulum, times: Float[Array, " n"], angles: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    residuals = model(times) - angles
    return jnp.mean(jnp.square(residuals)) / NOISE**2, residuals


def main(folder: Path) -> None:
    truth = pendulum(damping=0.15, frequency=2.0, angle=1.2, velocity=0.0)
    times = jnp.linspace(0, 8, 160)
    noise = NOISE * jax.random.normal(jax.random.key(0), times.shape)
    angles = truth(times) + noise

    guess = pendulum(damping=0.5, frequency=1.7, angle=0.5, velocity=0.5)
    solution = eqopt.minimize(
        misfit,
        eqopt.LBFGS(),
        guess,
        (times, angles),
        has_aux=True,
        history=True,
    )
    found = solution.params
    print(f"{solution.num_steps} steps, {solution.num_evals} evaluations")
    print(f"misfit {solution.value:.3f} in units of the noise")
    for name, a, b in (
        ("damping", jnp.exp(found.log_damping), jnp.exp(truth.log_damping)),
        ("frequency", jnp.exp(found.log_frequency), jnp.exp(truth.log_frequency)),
        ("angle", found.angle, truth.angle),
        ("velocity", found.velocity, truth.velocity),
    ):
        print(f"{name:>9}: {a:6.3f}, in truth {b:6.3f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(times, angles, ".", markersize=3, label="data")
    left.plot(times, guess(times), "--", label="guess")
    left.plot(times, found(times), label="fit")
    left.set(xlabel="time [s]", ylabel="angle [rad]")
    left.legend()
    values = solution.stats["values"]
    right.semilogy(values[: int(solution.num_steps) + 1], marker=".")
    right.set(xlabel="step", ylabel="misfit")
    path = folder / "oscillator.png"
    figure.savefig(path, dpi=150)
    print(f"saved {path.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
