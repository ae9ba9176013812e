"""Which matrix of the self-scaled Broyden family a quasi-Newton method uses."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import wadler_lindig as wl
from jaxtyping import Array, Float

from .._base import checks
from .._base.converters import module_pdoc

_Scalar = Float[Array, ""]


class AbstractBroydenUpdate(eqx.Module):
    r"""Chooses the scale $\tau$ and the weight $\varphi$ in the update of
    [`eqopt.quasi_newton.ScaleByBFGS`][].
    """

    @abc.abstractmethod
    def weights(self, b: Callable[[], _Scalar], h: _Scalar, size: int) -> tuple[_Scalar, _Scalar]:
        r"""Gives $\tau$ and $\varphi$, both positive or zero.

        **Arguments:**

        - `b`: gives the ratio $b = s^T H^{-1} s / y^T s$ of the curvature along the step that the
            matrix predicted to the curvature found. It costs a product with the matrix.
        - `h`: the ratio $h = y^T H y / y^T s$, at least $1 / b$.
        - `size`: the number of real parameters.
        """

    def __pdoc__(self, **kwargs: object) -> wl.AbstractDoc:
        return module_pdoc(self, **kwargs)


class BFGSUpdate(AbstractBroydenUpdate):
    r"""The BFGS update: $\tau = 1$ and $\varphi = 1$.

    ??? cite "Reference"

        Nocedal and Wright, *Numerical Optimization*, 2nd edition, 2006, equation 6.17.
    """

    def weights(self, b: Callable[[], _Scalar], h: _Scalar, size: int) -> tuple[_Scalar, _Scalar]:
        return jnp.ones_like(h), jnp.ones_like(h)


class SelfScaledBFGS(AbstractBroydenUpdate):
    r"""The BFGS update of a matrix that grows where its curvature was too large: $\varphi = 1$ and

    $$\tau = \min\left(1, \frac{1}{b}\right), \qquad b = \frac{s^T H^{-1} s}{y^T s}$$

    ??? cite "Reference"

        Al-Baali, *Numerical experience with a class of self-scaling quasi-Newton algorithms*,
        Journal of Optimization Theory and Applications 96, 1998; Urbán, Stefanou and Pons,
        *Unveiling the optimization process of physics informed neural networks*, Journal of
        Computational Physics 523, 2025, equation 11.
    """

    def weights(self, b: Callable[[], _Scalar], h: _Scalar, size: int) -> tuple[_Scalar, _Scalar]:
        return 1 / jnp.maximum(b(), 1), jnp.ones_like(h)


class SelfScaledBroyden(AbstractBroydenUpdate):
    r"""The self-scaled update of Broyden's family whose weight depends on the step:

    $$\varphi = \frac{1 - \theta}{\sigma}, \qquad \sigma = 1 + a \theta, \qquad
    \theta = \max\left(\frac{\rho - 1}{a},
    \min\left(\frac{1}{\rho}, \frac{1 - b}{b}\right)\right),$$

    $$\rho = \min\left(1, h \left(1 - \sqrt{\frac{a}{1 + a}}\right)\right), \qquad a = b h - 1,$$

    where $b = s^T H^{-1} s / y^T s$ and $h = y^T H y / y^T s$. For $n$ parameters, with $\tau_0 =
    \min(1, 1 / b)$, the scale is

    $$\tau = \begin{cases} \tau_0 \min(\sigma^{1 / (1 - n)}, 1 / \theta) & \theta > 0 \\
    \min(\tau_0\, \sigma^{1 / (1 - n)}, \sigma) & \theta \le 0 \end{cases}$$

    ??? cite "Reference"

        Al-Baali, Spedicato and Maggioni, *Broyden's quasi-Newton methods for a nonlinear system of
        equations and unconstrained optimization: a review and open problems*, Optimization Methods
        and Software 29, 2014; Urbán, Stefanou and Pons, *Unveiling the optimization process of
        physics informed neural networks*, Journal of Computational Physics 523, 2025, equations 13
        to 23.
    """

    def weights(self, b: Callable[[], _Scalar], h: _Scalar, size: int) -> tuple[_Scalar, _Scalar]:
        tiny = jnp.finfo(h.dtype).eps
        ratio = jnp.maximum(b(), tiny)
        a = jnp.maximum(ratio * h - 1, tiny)  # not less than 0, up to rounding
        rho = jnp.maximum(jnp.minimum(1, h * (1 - jnp.sqrt(a / (1 + a)))), tiny)
        theta = jnp.maximum((rho - 1) / a, jnp.minimum(1 / rho, (1 - ratio) / ratio))
        sigma = 1 + a * theta
        root = sigma ** (1 / (1 - size)) if size > 1 else jnp.ones_like(h)
        least = 1 / jnp.maximum(ratio, 1)
        above = least * jnp.minimum(root, 1 / jnp.where(theta > 0, theta, 1))
        below = jnp.minimum(least * root, sigma)
        return jnp.where(theta > 0, above, below), (1 - theta) / sigma


def check_update_rule(rule: object) -> None:
    """Refuses anything but an update rule."""
    if not isinstance(rule, AbstractBroydenUpdate):
        raise TypeError(
            "`update_rule` must be an `eqopt.quasi_newton.AbstractBroydenUpdate`, such as "
            f"`eqopt.quasi_newton.SelfScaledBroyden()`; got {checks.describe(rule)}"
        )
