"""Proximal gradient methods, for objectives with a penalty that has kinks."""

import equinox as eqx

from .._base.converters import real, steps
from .._base.types import Scalar, Steps
from .._transformation.base import AbstractOptimizer, AbstractTransformation
from ..linesearch._proximal import (
    ScaleByProximalLinesearch,
    ScaleByProximalLinesearchState,
)
from ..projections._base import AbstractPenalty


class ProximalGradient(AbstractOptimizer[ScaleByProximalLinesearchState]):
    r"""Minimizes the sum of a smooth deterministic objective $f$ and a penalty $h$ that may have
    kinks:

    $$x \leftarrow \operatorname{prox}_{t h}(x - t \nabla f(x)).$$

    It is [`eqopt.linesearch.ScaleByProximalLinesearch`][]: there is the rule of the step $t$.
    Where the objective is badly conditioned, [`eqopt.FISTA`][] needs fewer evaluations. On a set,
    these are projected gradient steps:

    ```python
    def misfit(x):
        return jnp.sum((x - jnp.array([-1.0, 2.0])) ** 2)


    opt = eqopt.ProximalGradient(eqopt.projections.NonNegative())
    solution = eqopt.minimize(misfit, opt, jnp.ones(2))
    assert solution.params[0] == 0.0 and jnp.isclose(solution.params[1], 2.0, atol=1e-3)
    ```

    With `step`, the `value` of the evaluation is $f$ alone; `minimize` gives $f + h$. A step
    evaluates the objective once, and once more each time that $t$ is too long. The state holds two
    copies of the parameters.

    **Arguments:**

    - `penalty`: the penalty $h$, or a set: [`eqopt.projections.L1`][],
        [`eqopt.projections.NonNegative`][] or another [`eqopt.projections.AbstractPenalty`][].
    - `max_backtracking_steps`: how many times the step may be decreased; at least 0.
    - `decrease_factor`: the largest factor of the step while it is too long; in $(0, 1)$.
    - `increase_factor`: the ratio of the first step tried to the last step; at least 1.

    Its `update` needs `params`, `value`, `grad` and `value_fn`.

    Raises a `TypeError` if `penalty` is not such a Module.

    ??? cite "Reference"

        Beck and Teboulle, *A fast iterative shrinkage-thresholding algorithm for linear inverse
        problems*, SIAM Journal on Imaging Sciences 2, 2009, section 3; Parikh and Boyd, *Proximal
        algorithms*, Foundations and Trends in Optimization 1, 2014, section 4.2.
    """

    penalty: AbstractPenalty
    max_backtracking_steps: Steps = eqx.field(converter=steps("max_backtracking_steps"), default=50)
    decrease_factor: Scalar = eqx.field(
        converter=real("decrease_factor", above=0, below=1), default=0.5
    )
    increase_factor: Scalar = eqx.field(converter=real("increase_factor", at_least=1), default=1.1)

    def compose(self) -> AbstractTransformation[ScaleByProximalLinesearchState]:
        return ScaleByProximalLinesearch(
            penalty=self.penalty,
            accelerated=False,
            max_backtracking_steps=self.max_backtracking_steps,
            decrease_factor=self.decrease_factor,
            increase_factor=self.increase_factor,
        )


class FISTA(AbstractOptimizer[ScaleByProximalLinesearchState]):
    r"""Minimizes the sum of a smooth deterministic objective $f$ and a penalty $h$ that may have
    kinks, by accelerated proximal gradient steps with restarts:

    $$x_{k+1} = \operatorname{prox}_{t h}(y_k - t \nabla f(y_k)), \qquad
    y_k = x_k + \frac{\theta_{k-1} - 1}{\theta_k} (x_k - x_{k-1}), \qquad
    \theta_k = \frac{1 + \sqrt{1 + 4 \theta_{k-1}^2}}{2}$$

    It is [`eqopt.linesearch.ScaleByProximalLinesearch`][], accelerated: there are the rules of the
    step $t$ and of the restarts. The parameters are the $x_k$, and never the $y_k$.

    ```python
    def misfit(x, inputs, targets):
        return jnp.sum((inputs @ x - targets) ** 2) / 2


    inputs, targets = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([4.0, 0.5])
    penalty = eqopt.projections.L1(1.0)
    lasso = eqopt.minimize(misfit, eqopt.FISTA(penalty), jnp.zeros(2), (inputs, targets))
    assert jnp.allclose(lasso.params, jnp.array([1.75, 0.0]), atol=1e-3)
    ```

    With `step`, the `value` of the evaluation is $f$ alone; `minimize` gives $f + h$. The objective
    is evaluated about twice in a step, at $y_k$ and at $x_{k+1}$. The state holds three copies of
    the parameters.

    **Arguments:**

    - `penalty`: the penalty $h$, or a set: [`eqopt.projections.L1`][],
        [`eqopt.projections.NonNegative`][] or another [`eqopt.projections.AbstractPenalty`][].
    - `max_backtracking_steps`: how many times the step may be decreased; at least 0.
    - `decrease_factor`: the largest factor of the step while it is too long; in $(0, 1)$.
    - `increase_factor`: the ratio of the first step tried to the last step; at least 1.

    Its `update` needs `params`, `value`, `grad` and `value_fn`.

    Raises a `TypeError` if `penalty` is not such a Module.

    ??? cite "Reference"

        Beck and Teboulle, *A fast iterative shrinkage-thresholding algorithm for linear inverse
        problems*, SIAM Journal on Imaging Sciences 2, 2009, equations 4.1 to 4.3; O'Donoghue and
        Candès, *Adaptive restart for accelerated gradient schemes*, Foundations of Computational
        Mathematics 15, 2015, equation 13.
    """

    penalty: AbstractPenalty
    max_backtracking_steps: Steps = eqx.field(converter=steps("max_backtracking_steps"), default=50)
    decrease_factor: Scalar = eqx.field(
        converter=real("decrease_factor", above=0, below=1), default=0.5
    )
    increase_factor: Scalar = eqx.field(converter=real("increase_factor", at_least=1), default=1.1)

    def compose(self) -> AbstractTransformation[ScaleByProximalLinesearchState]:
        return ScaleByProximalLinesearch(
            penalty=self.penalty,
            accelerated=True,
            max_backtracking_steps=self.max_backtracking_steps,
            decrease_factor=self.decrease_factor,
            increase_factor=self.increase_factor,
        )
