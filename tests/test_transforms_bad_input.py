"""Arguments and gradients that a transformation refuses, and what it says."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from _rules import transformed, tree
from purestep import transforms

PARAMS = tree()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: transforms.clip_by_value(0.0), ValueError, "max_value must be a finite number above 0, got 0.0"),
        (lambda: transforms.clip_by_value(None), TypeError, "max_value must be a number, a 0-d tensor or a schedule"),
        (lambda: transforms.clip_by_norm(-1.0), ValueError, "max_norm must be a finite number above 0, got -1.0"),
        (lambda: transforms.clip_by_norm(1.0, eps=-1), ValueError, "eps must be a finite number at least 0, got -1"),
        (lambda: transforms.adaptive_clip(0.0), ValueError, "clipping must be a finite number above 0, got 0.0"),
        (lambda: transforms.adaptive_clip(0.1, eps=0.0), ValueError, "eps must be a finite number above 0, got 0.0"),
        (lambda: transforms.adaptive_clip(0.1, axes=(1,)), TypeError, "axes must be a function (name, parameter)"),
        (lambda: transforms.centralize(axes=1), TypeError, "axes must be a function (name, parameter)"),
        (lambda: transforms.add_decayed_weights(-0.1), ValueError, "weight_decay must be a finite number at least 0"),
        (lambda: transforms.add_decayed_weights(0.1, mask=3), TypeError, "mask must be a shell pattern over names"),
        (lambda: transforms.add_decayed_weights(0.1, mask=[]), ValueError, "mask must name at least one parameter"),
        (
            lambda: transformed(transforms.add_decayed_weights(0.1, mask="wieght"), [PARAMS], PARAMS),
            ValueError,
            "mask='wieght' names no parameter (did you mean 'weight'",
        ),
        (
            lambda: transformed(transforms.add_decayed_weights(0.1, mask=lambda n, p: False), [PARAMS], PARAMS),
            ValueError,
            "mask must choose at least one of 'scalar', 'bias'",
        ),
        (lambda: transforms.add_noise(-1.0), ValueError, "eta must be a finite number at least 0, got -1.0"),
        (lambda: transforms.add_noise(1.0, gamma=-1), ValueError, "gamma must be a finite number at least 0, got -1"),
        (lambda: transforms.add_noise(1.0, site=-1), ValueError, "site must be an int of at least 0, got -1"),
        (lambda: transforms.scale(float("nan")), ValueError, "factor must be a finite number, got nan"),
        (lambda: transforms.scale("2"), TypeError, "factor must be a number, a 0-d tensor or a schedule"),
        (lambda: transforms.scale_by_schedule(0.1), TypeError, "schedule must be a function of the step, got 0.1"),
        (lambda: transforms.normalize(per_leaf=1), TypeError, "per_leaf must be True or False, got 1"),
        (lambda: transforms.normalize(eps=-0.1), ValueError, "eps must be a finite number at least 0, got -0.1"),
        (
            lambda: transforms.scale_by_trust_ratio(coefficient=0.0),
            ValueError,
            "coefficient must be a finite number above 0",
        ),
        (lambda: transforms.scale_by_trust_ratio(eps=-1), ValueError, "eps must be a finite number at least 0"),
        (lambda: transforms.trace(1.0), ValueError, "decay must be a finite number at least 0 and below 1, got 1.0"),
        (lambda: transforms.trace(0.9, nesterov=1), TypeError, "nesterov must be True or False, got 1"),
        (lambda: transforms.ema(0.9, debias="no"), TypeError, "debias must be True or False, got 'no'"),
        (
            lambda: transformed(transforms.scale(2.0), [PARAMS.apply(lambda p: p.float())], PARAMS),
            TypeError,
            "grads['scalar'] must have its parameter's dtype torch.float64, got torch.float32",
        ),
        (lambda: transforms.ema(-0.1), ValueError, "decay must be a finite number at least 0 and below 1, got -0.1"),
        (lambda: transforms.scale_by_adam(betas=0.9), TypeError, "betas must be two numbers in [0, 1), got 0.9"),
        (lambda: transforms.scale_by_adam(betas=(0.9, 1.0)), ValueError, "betas[1] must be a finite number at least 0"),
        (lambda: transforms.scale_by_adam(eps_root=-1), ValueError, "eps_root must be a finite number at least 0"),
        (lambda: transforms.scale_by_rms(eps=0.0), ValueError, "one of eps and eps_root must be above 0"),
        (lambda: transforms.stateless(3), TypeError, "fn must be a function (grads, params, context) -> grads, got 3"),
        (lambda: returned(lambda grads: None), TypeError, "fn must return gradients by name"),
        (lambda: returned(lambda grads: grads.select("bias")), ValueError, "'empty' is missing"),
        (lambda: returned(lambda grads: {**dict(grads.items()), "z": grads["bias"]}), ValueError, "'z' is too many"),
        (
            lambda: returned(lambda grads: grads.apply(lambda g: g.float())),
            ValueError,
            "fn must keep shapes and dtypes: 'scalar' must be () torch.float64, got () torch.float32",
        ),
        (
            lambda: transforms.trace(0.9).init(TensorDict({"n": torch.ones(2, dtype=torch.complex64)})),
            TypeError,
            "trace needs parameters of a real floating-point dtype, got torch.complex64 as 'n'",
        ),
        (
            lambda: transforms.scale(2.0).init(TensorDict({"n": torch.ones(2, dtype=torch.int64)})),
            TypeError,
            "scale needs parameters of a real floating-point dtype, got torch.int64 as 'n'",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def returned(fn):
    return transformed(transforms.stateless(lambda grads, params, context: fn(grads)), [PARAMS], PARAMS)
