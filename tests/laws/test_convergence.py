"""Every optimizer arrives, on two functions and from where optax's own tests begin."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array

import eqopt
from eqopt import control
from eqopt.writing import AbstractOptimizer
from tests.laws import table
from tests.support.toolbox import in_one_width

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer, with the rate that optax's tests have for it.

    **Arguments:**

    - `make`: builds it.
    - `narrow`: whether it also goes along Rosenbrock's valley.
    - `complex`: whether it is for complex parameters too.
    - `num_steps`: how many steps it has.
    """

    make: Callable[[], Any]
    narrow: bool = True
    complex: bool = True
    num_steps: int = 10_000


def real(make: Callable[[], Any], num_steps: int = 10_000) -> Case:
    return Case(make, complex=False, num_steps=num_steps)


def contributed(make: Callable[[], Any]) -> Case:
    """What optax's tests give more time."""
    return Case(make, num_steps=30_000)


CASES = {
    "AdaBelief": Case(lambda: eqopt.AdaBelief(1e-2)),
    "Adadelta": real(lambda: eqopt.Adadelta(0.1)),
    "Adafactor": Case(lambda: eqopt.Adafactor(5e-3)),
    "Adagrad": Case(lambda: eqopt.Adagrad(1.0)),
    "Adam": Case(lambda: eqopt.Adam(1e-1)),
    "Adamax": Case(lambda: eqopt.Adamax(1e-1)),
    "AdamaxW": Case(lambda: eqopt.AdamaxW(1e-1)),
    "AdamW": Case(lambda: eqopt.AdamW(1e-1)),
    "Adan": real(lambda: eqopt.Adan(1e-1)),
    "AMSGrad": Case(lambda: eqopt.AMSGrad(1e-1)),
    "Fromage": real(lambda: eqopt.Fromage(5e-3)),
    "LAMB": Case(lambda: eqopt.LAMB(1e-3)),
    "LARS": Case(lambda: eqopt.LARS(1.0)),
    "Lion": real(lambda: eqopt.Lion(1e-2, weight_decay=1e-4)),
    "NAdam": Case(lambda: eqopt.NAdam(1e-2)),
    "NAdamW": Case(lambda: eqopt.NAdamW(1e-2)),
    "NoisySGD": real(lambda: eqopt.NoisySGD(1e-3, eta=1e-4, key=KEY)),
    "NovoGrad": Case(lambda: eqopt.NovoGrad(1e-3)),
    "OptimisticAdamV2": Case(lambda: eqopt.OptimisticAdamV2(2e-3)),
    "OptimisticGradientDescent": real(
        lambda: eqopt.OptimisticGradientDescent(2e-3, alpha=0.7, beta=0.1)
    ),
    "PolyakSGD": real(lambda: eqopt.PolyakSGD(1.0)),
    "RAdam": Case(lambda: eqopt.RAdam(5e-3)),
    "RMSProp": Case(lambda: eqopt.RMSProp(5e-3)),
    "RMSProp-momentum": Case(lambda: eqopt.RMSProp(5e-3, momentum=0.9)),
    "Rprop": real(lambda: eqopt.Rprop(1e-1)),
    "SGD": Case(lambda: eqopt.SGD(1e-3, momentum=0.9)),
    # They go back and forth across the valley, by the same length.
    "SignSGD": Case(lambda: eqopt.SignSGD(1e-1), narrow=False, complex=False),
    "Signum": Case(lambda: eqopt.Signum(1e-2), narrow=False, complex=False),
    "SM3": real(lambda: eqopt.SM3(1.0)),
    "Yogi": Case(lambda: eqopt.Yogi(1e-1)),
    # On the complex Rosenbrock function its third step is of length 900, optax's too: whether it
    # finds back depends on how the compiler rounds.
    "ACProp": real(lambda: eqopt.ACProp(1e-3), 30_000),
    "AdEMAMix": contributed(lambda: eqopt.AdEMAMix(1e-3)),
    "SimplifiedAdEMAMix": contributed(lambda: eqopt.SimplifiedAdEMAMix(1e-3)),
    "ADOPT": contributed(lambda: eqopt.ADOPT(1e-2)),
    # Of the complex valley it has 97 % behind it then.
    "COCOB": real(eqopt.COCOB, 30_000),
    "DAdaptAdamW": contributed(lambda: eqopt.DAdaptAdamW(1e-1)),
    "DoG": contributed(eqopt.DoG),
    "DoWG": contributed(eqopt.DoWG),
    "MADGRAD": contributed(lambda: eqopt.MADGRAD(1e-2)),
    "MoMo": contributed(lambda: eqopt.MoMo(1e-1)),
    "MoMoAdam": contributed(lambda: eqopt.MoMoAdam(1e-1)),
    "Muon": contributed(lambda: eqopt.Muon(1e-2)),
    "Prodigy": contributed(lambda: eqopt.Prodigy(1e-1)),
    "ScheduleFreeSGD": contributed(lambda: eqopt.ScheduleFreeSGD(1e-2, 5000)),
    "ScheduleFreeAdamW": contributed(lambda: eqopt.ScheduleFreeAdamW(1e-2, 5000)),
    "Sophia": contributed(lambda: eqopt.Sophia(1e-2)),
    "GaLore": contributed(lambda: eqopt.GaLore(1e-2, rank=8)),
    "LaProp": Case(lambda: control.LaProp(1e-2)),
    "StableAdamW": Case(lambda: control.StableAdamW(1e-2, weight_decay=0.0)),
    "MARS": Case(lambda: control.MARS(1e-2)),
    "CAME": Case(lambda: control.CAME(1e-2)),
    "AdamC": Case(lambda: control.AdamC(1e-1, 1e-1, weight_decay=1e-4)),
    "AdamH": Case(lambda: control.AdamH(1e-1)),
}

# Optimizers that are made to minimize: `test_minimize` asks more of them.
MINIMIZERS = {"BFGS", "FISTA", "LBFGS", "LBFGSB", "NewtonCG", "NonlinearCG", "ProximalGradient"}
# What needs a gradient for each example; `test_private`.
PRIVATE = {"DPSGD"}
# What steps matrices, and leaves the vectors here to other optimizers; `test_which_matrices`.
OF_MATRICES = {"AdaMuon", "MuonClip", "MuonHyperball", "NAMO", "NorMuon", "PolarGrad", "Scion"}


def parabola(dtype: Any) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Where to begin, where to end, and the function."""
    final = jnp.asarray([1, -1, 1], dtype)
    final = final * (1 + 1j) if jnp.iscomplexobj(final) else final

    def objective(x: Array) -> Array:
        return jnp.sum(jnp.square(jnp.abs(x - final)))

    return jnp.asarray([-1, 10, 1], dtype), final, objective


def rosenbrock(dtype: Any) -> tuple[Array, Array, Callable[[Array], Array]]:
    """The same of Rosenbrock's function, with its minimum at `(a, a**2)`."""
    a = jnp.asarray(1, dtype)
    a = a * (1 + 1j) if jnp.iscomplexobj(a) else a

    def square(x: Array) -> Array:
        return jnp.square(jnp.real(x)) + jnp.square(jnp.imag(x))

    def objective(x: Array) -> Array:
        return square(a - x[0]) + 100 * square(x[1] - x[0] * x[0])

    return jnp.zeros(2, dtype), jnp.stack([a, a * a]), objective


def arrived(opt: Any, start: Array, objective: Callable[[Array], Array], num_steps: int) -> Array:
    """The parameters to evaluate with, after some steps."""

    @eqx.filter_jit
    def run(opt: Any, x: Array) -> Array:
        def step(carry: Any, _: Any) -> tuple[Any, None]:
            x, state = carry
            value, grad = jax.value_and_grad(objective)(x)
            updates, state = opt.update(grad, state, x, value=value, value_fn=objective)
            return (eqopt.apply_updates(x, updates), state), None

        (x, state), _ = lax.scan(step, (x, opt.init(x)), length=num_steps)
        return eqopt.eval_params(x, state)

    return run(opt, start)


ASKED = {
    f"{name}-{problem.__name__}-{jnp.dtype(dtype).name}": (case, problem, dtype)
    for name, case in CASES.items()
    for problem in (parabola, rosenbrock)[: 2 if case.narrow else 1]
    for dtype in (jnp.float32, jnp.complex64)[: 2 if case.complex else 1]
}


@in_one_width
@pytest.mark.parametrize(("case", "problem", "dtype"), ASKED.values(), ids=ASKED.keys())
def test_it_arrives(case: Case, problem: Any, dtype: Any):
    start, final, objective = problem(dtype)
    x = arrived(case.make(), start, objective, case.num_steps)
    # As near as optax's tests ask; none begins there.
    np.testing.assert_allclose(x, final, rtol=3e-2, atol=3e-2)
    assert not np.allclose(start, final, rtol=3e-2, atol=3e-2)


def test_every_optimizer_is_here():
    found = {x for x in table.concrete_classes() if issubclass(x, AbstractOptimizer)}
    own = {x.__name__ for x in found if "flax_optim" not in x.__module__}
    others = MINIMIZERS | PRIVATE | OF_MATRICES
    assert {type(case.make()).__name__ for case in CASES.values()} == own - others
