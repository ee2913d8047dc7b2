"""Which laws each public name is under, or why under none: what ``test_exports_have_laws.py`` goes by."""

from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import numpy as np
import torch
from torch import nn

import purestep as ps
from _checks_of_exports import (
    EXAMPLES,
    PROBLEM,
    RULE,
    batch_values,
    first_parameter,
    halves,
    heavy,
    new_state,
    of_a_checkpoint,
    of_a_dataframe,
    of_a_derivative,
    of_a_source,
    of_a_step,
    of_an_image_folder,
    of_an_objective,
    of_chain,
    of_compile,
    of_examples,
    of_from_torch,
    of_ggn_vp,
    of_init_params,
    of_lbfgs_step,
    of_loader,
    of_loading,
    of_loss_scale,
    of_manager,
    of_memory_mapped,
    of_optimizer,
    of_pipeline,
    of_plateau,
    of_reading,
    of_remat,
    of_sam_step,
    of_train_step,
    of_update_step,
    of_weights,
    projecting,
    pure,
    step_of,
    tensors,
)
from _optimizer_table import BEYOND, TORCH
from purestep import laws, transforms

# By the name of the room and the export: a function that runs its laws.
LAWS = {
    "purestep.train_step": of_train_step,
    "purestep.grad_step": partial(of_a_step, ps.grad_step),
    "purestep.eval_step": partial(of_a_step, ps.eval_step),
    "purestep.loss_step": lambda: laws.check_pure(
        ps.loss_step(PROBLEM.model, PROBLEM.objective), new_state(), PROBLEM.batch, model=PROBLEM.model
    ),
    "purestep.update_step": of_update_step,
    "purestep.compile": of_compile,
    "purestep.hvp": partial(of_a_derivative, ps.hvp),
    "purestep.jvp": partial(of_a_derivative, ps.jvp),
    "purestep.ggn_vp": of_ggn_vp,
    "purestep.value_and_grad": lambda: laws.check_pure(
        ps.value_and_grad(objective=PROBLEM.objective, model=PROBLEM.model),
        new_state(),
        PROBLEM.batch,
        model=PROBLEM.model,
    ),
    "purestep.per_example_grads": partial(of_a_step, ps.per_example_grads),
    "purestep.per_example_norms": partial(of_a_step, ps.per_example_norms),
    "purestep.init_state": lambda: laws.check_pure(lambda state, _: new_state(), new_state(), {}, model=PROBLEM.model),
    "purestep.init_state_from_meta": lambda: laws.check_pure(
        lambda state, _: ps.init_state_from_meta(partial(nn.Linear, 3, 2), RULE, seed=1)[1], new_state(), {}
    ),
    "purestep.init_params": of_init_params,
    "purestep.load_into": of_loading,
    "purestep.remat": of_remat,
    "purestep.DynamicLossScale": of_loss_scale,
    "purestep.mean": lambda: of_an_objective(lambda model, batch: ps.mean(batch_values(model, batch))),
    "purestep.once": lambda: of_an_objective(
        lambda model, batch: ps.mean(batch_values(model, batch)) + ps.once(sum(p.sum() for p in model.parameters()))
    ),
    "purestep.merge": lambda: pure(ps.merge, {"a": ps.mean(torch.rand(3))}, {"a": ps.mean(torch.rand(4))}),
    "purestep.values": lambda: pure(ps.values, {"a": ps.mean(torch.rand(3)), "b": torch.ones(())}),
    "purestep.matrices_only": lambda: pure(ps.matrices_only, "weight", torch.rand(3, 2)),
    "purestep.chain": of_chain,
    "purestep.checkpoint.save": lambda: laws.check_resumable(step_of(), new_state(), [PROBLEM.batch] * 4),
    "purestep.checkpoint.load": partial(of_a_checkpoint, partial(ps.checkpoint.load, like=new_state())),
    **{
        f"purestep.checkpoint.{name}": partial(of_a_checkpoint, getattr(ps.checkpoint, name))
        for name in ("latest", "load_data", "load_extra", "load_metrics", "read_manifest", "verify")
    },
    "purestep.checkpoint.Manager": of_manager,
    "purestep.checkpoint.load_into": of_loading,
    "purestep.checkpoint.load_weights": of_weights,
    "purestep.checkpoint.state_dict": lambda: pure(ps.checkpoint.state_dict, new_state()),
    "purestep.checkpoint.from_state_dict": lambda: pure(
        ps.checkpoint.from_state_dict, new_state(), ps.checkpoint.state_dict(new_state())
    ),
    "purestep.schedules.schedule": lambda: laws.check_schedule(halves(start=0.1, every=10)),
    "purestep.schedules.from_torch": of_from_torch,
    "purestep.schedules.parse": partial(of_reading, ps.schedules.parse, repr),
    "purestep.schedules.plateau": of_plateau,
    "purestep.schedules.from_config": partial(of_reading, ps.schedules.from_config, lambda one: one.to_config()),
    "purestep.schedules.is_continuous": lambda: pure(ps.schedules.is_continuous, ps.schedules.cosine(0.1, 9), steps=12),
    "purestep.data.sequential": lambda: laws.check_order(
        st.builds(ps.data.sequential, st.integers(1, 30)), max_examples=5
    ),
    "purestep.data.shuffled": lambda: laws.check_order(
        st.builds(ps.data.shuffled, st.integers(1, 30), st.integers(0, 9)), max_examples=5
    ),
    "purestep.data.subset": lambda: laws.check_order(ps.data.subset([4, 1, 9], seed=0)),
    "purestep.data.with_replacement": lambda: laws.check_order(ps.data.with_replacement(5, 9, seed=0)),
    "purestep.data.weighted": lambda: laws.check_order(ps.data.weighted([1, 0, 2.5], 9, seed=0)),
    "purestep.data.grouped": lambda: laws.check_order(ps.data.grouped(range(23), 4, seed=0)),
    "purestep.data.stratified": lambda: laws.check_order(ps.data.stratified([0, 1, 0, 2], seed=0)),
    "purestep.data.mixed": lambda: laws.check_order(
        ps.data.mixed({"a": ps.data.shuffled(5, seed=0), "b": ps.data.sequential(9)}, [2, 1])
    ),
    "purestep.data.loader": of_loader,
    "purestep.data.memory_mapped": of_memory_mapped,
    "purestep.data.from_arrays": lambda: of_a_source(ps.data.from_arrays({"x": np.arange(12.0).reshape(6, 2)})),
    "purestep.data.token_windows": lambda: of_a_source(ps.data.token_windows(np.arange(40), length=8)),
    "purestep.data.collate": lambda: pure(ps.data.collate, EXAMPLES),
    "purestep.data.padded": lambda: pure(ps.data.padded(), [{"x": torch.ones(2)}, {"x": torch.ones(3)}]),
    "purestep.data.pipeline": of_pipeline,
    "purestep.data.from_tensors": lambda: of_a_source(tensors()),
    "purestep.data.cache": lambda: of_a_source(ps.data.cache(tensors())),
    "purestep.data.multi": lambda: of_a_source(ps.data.multi(left=tensors(), right=tensors())),
    "purestep.data.dataframe": of_a_dataframe,
    "purestep.data.image_folder": of_an_image_folder,
    "purestep.random.key": lambda: pure(ps.random.key, 2**40),
    "purestep.random.examples": of_examples,
    "purestep.sam_step": of_sam_step,
    "purestep.lbfgs_step": of_lbfgs_step,
    "purestep.transforms.partition": of_optimizer(
        lambda rate: transforms.partition({"matrix": ps.adamw(rate), "vector": ps.sgd(rate)}, heavy)
    ),
    "purestep.transforms.masked": of_optimizer(lambda rate: transforms.masked(ps.adamw(rate), ps.matrices_only)),
    "purestep.transforms.freeze": of_optimizer(lambda rate: transforms.freeze(ps.adamw(rate), ps.matrices_only)),
    "purestep.transforms.stateless": lambda: laws.check_transformation(transforms.stateless(lambda g, p, c: g)),
    "purestep.transforms.by_kind": lambda: pure(transforms.by_kind(PROBLEM.model), *first_parameter()),
    "purestep.transforms.unit_axes": lambda: pure(transforms.unit_axes, *first_parameter()),
    "purestep.transforms.unit_axes_of": lambda: pure(transforms.unit_axes_of(PROBLEM.model), *first_parameter()),
    "purestep.transforms.project": projecting(transforms.project(torch.tanh)),
    "purestep.transforms.project_nonnegative": projecting(transforms.project_nonnegative()),
    "purestep.transforms.project_norm_ball": projecting(transforms.project_norm_ball(1.0)),
    "purestep.optimizers.ema": of_optimizer(lambda rate: ps.optimizers.ema(ps.sgd(rate), 0.9)),
    "purestep.optimizers.swa": of_optimizer(lambda rate: ps.optimizers.swa(ps.sgd(rate), start=2)),
    "purestep.optimizers.lookahead": of_optimizer(lambda rate: ps.optimizers.lookahead(ps.sgd(rate), every=2)),
    "purestep.optimizers.apply_if_finite": of_optimizer(lambda rate: ps.optimizers.apply_if_finite(ps.adamw(rate))),
    "purestep.optimizers.inject_hyperparams": of_optimizer(
        lambda rate: ps.optimizers.inject_hyperparams(ps.adamw, rate=rate, betas=(0.8, 0.9))
    ),
    "purestep.transforms.global_norm": lambda: pure(transforms.global_norm, PROBLEM.batch["inputs"].select("table")),
}

TYPE = "a type: the functions that make it and take it are under laws"
NONE = {
    **{
        f"purestep.{name}": TYPE
        for name in (
            "BoundModule",
            "Context",
            "ExampleGradients",
            "Gradient",
            "GradientTransformation",
            "Loss",
            "Mean",
            "Optimizer",
            "TrainState",
            "UpdateContext",
        )
    },
    "purestep.Stopped": "how a run that was told to stop ends",
    "purestep.checkpoint.Manifest": TYPE,
    "purestep.schedules.Schedule": TYPE,
    **{
        f"purestep.optimizers.{name}": "test_optimizers.py and test_optimizers_beyond.py run the laws over the table"
        for name in (*TORCH, *BEYOND)
    },
    "purestep.optimizers.lbfgs": "it has no meaning but inside lbfgs_step, which is under laws",
    "purestep.optimizers.from_torch": "test_optimizers_torch.py holds it against torch in both directions",
    "purestep.optimizers.to_torch": "test_optimizers_torch.py holds it against torch in both directions",
    "purestep.optimizers.matrices_only": "it is purestep.matrices_only",
    **{
        f"purestep.data.{name}": TYPE
        for name in ("Batches", "IndexOrder", "Loader", "MixedOrder", "OrderSampler", "Pipeline", "Source")
    },
    "purestep.data.parquet": "a table once it is read, and its library may be missing; test_sources_more.py reads one",
    "purestep.data.huggingface": "as the dataset; its library may be missing; test_sources_more.py reads one",
    "purestep.compiler_missing": "it says what the machine lacks, and is no function of tensors",
    "purestep.evaluate": "a shell around eval_step and merge; test_fit.py holds that it adds nothing",
    "purestep.fit": "a shell around a step; test_fit.py holds that it adds nothing, and resumes",
    "purestep.measure": "it measures time and memory, which are no functions",
}

# Arguments of random functions and of metrics by the name of the parameter; the first dimension runs over examples.
RANDOM_ARGUMENTS = {
    "shape": (5, 3),
    "data": 7,
    "calls": torch.tensor(2),
    "site": 1,
    "p": 0.3,
    "n": 20,
    "count": 9,
    "rate": 4.0,
    "concentration": 2.5,
    "low": -10,
    "high": 10,
    "lower": -1.0,
    "upper": 2.0,
    "logits": torch.linspace(-1, 1, 24).reshape(12, 2),
}
METRIC_ARGUMENTS = {
    "scores": lambda batch: batch["inputs", "table"][:, :3],
    "probabilities": lambda batch: batch["inputs", "table"][:, :3].softmax(-1),
    "labels": lambda batch: batch["label"],
    "predicted": lambda batch: batch["label"].roll(0) * 2 % 3,
    "targets": lambda batch: batch["weight"],
    "values": lambda batch: batch["weight"],
    "nats": lambda batch: batch["weight"],
    "where": lambda batch: batch["where"],
    "k": lambda batch: 2,
    "classes": lambda batch: 3,
    "average": lambda batch: "macro",
}
