"""Every public name is under a law, or says why there is none: a new one without an entry here fails.

What a name is decides where that can be told: schedules are drawn from ``BASIC``, optimizers and gradient
transformations from the strategies, random functions and metrics are called with arguments by their parameters' names.
All others have an entry in ``LAWS`` or in ``NONE``.
"""

from __future__ import annotations

import inspect
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _optimizer_table import BEYOND, TORCH
from purestep import laws, transforms
from purestep.execution.compile import compiler_missing
from purestep.laws._drawn_schedules import BASIC
from purestep.laws._report import on_drawn
from purestep.laws.strategies import OPTIMIZERS, TRANSFORMATIONS

ROOMS: dict[str, ModuleType] = {
    "purestep": ps,
    "purestep.schedules": ps.schedules,
    "purestep.data": ps.data,
    "purestep.metrics": ps.metrics,
    "purestep.random": ps.random,
    "purestep.transforms": transforms,
    "purestep.optimizers": ps.optimizers,
}
FEW = settings(max_examples=4, deadline=None, database=None, derandomize=True, phases=[Phase.generate])

PROBLEM = laws.Problem("perceptron", "single_term", 5, dropout=True)
RULE = ps.chain(ps.clip_by_global_norm(0.5), ps.sgd(0.1, momentum=0.9))


def new_state(**options):
    return ps.init_state(PROBLEM.model, RULE, seed=0, **options)


def step_of(count=1, **options):
    return ps.train_step(PROBLEM.model, PROBLEM.objective, RULE, accumulate=count, **options)


def pure(function, *arguments, **options):
    """Law 1 of any function: of tensors, trees, and what else is no argument to be watched."""
    laws.check_pure(lambda given, rest: function(*given, **options), list(arguments), {})


# Laws of what has an entry of its own, by the name of the room and the export.


def of_train_step():
    laws.check_step(step_of(), new_state(), PROBLEM.batch, model=PROBLEM.model, make=step_of, draws=True)


def of_a_step(make):
    laws.check_step(make(PROBLEM.model, PROBLEM.objective), new_state(), PROBLEM.batch, model=PROBLEM.model)


def of_update_step():
    gradient = ps.grad_step(PROBLEM.model, PROBLEM.objective)(new_state(), PROBLEM.batch)
    laws.check_step(ps.update_step(RULE), new_state(), gradient, skip=["ensemble", "resumable", "non-finite"])
    laws.check_resumable(ps.update_step(RULE), new_state(), [gradient] * 4)


def of_compile(request):
    """With the step that the session has compiled: each compilation takes seconds."""
    if compiler_missing():
        pytest.skip(compiler_missing())
    job, compiled = request.getfixturevalue("job"), request.getfixturevalue("compiled_step")
    laws.check_execution_invariant(job.step, job.state(), job.batch(), others={"compiled": compiled}, steps=2)
    laws.check_step(
        compiled, job.state(), job.batch(), model=job.model, laws=["pure", "counts", "ensemble", "resumable"]
    )


def of_a_derivative(make):
    tangent = TensorDict({name: leaf.clone() for name, leaf in new_state().params.items()}, batch_size=[])
    function = make(PROBLEM.model, PROBLEM.objective)
    laws.check_pure(lambda state, given: function(state, *given), new_state(), (PROBLEM.batch, tangent))


def of_ggn_vp():
    def outputs(model, batch):
        return model(batch["inputs"])

    def loss(outputs, batch):
        return ps.mean(outputs.square())

    of_a_derivative(lambda model, objective: ps.ggn_vp(model, outputs, loss))


def of_loading():
    model = laws.make_model("perceptron", 7)
    state = ps.init_state(PROBLEM.model, RULE, seed=3)
    ps.load_into(model, state)
    again = ps.init_state(model, RULE, seed=3)
    assert all(torch.equal(again.params[name], leaf) for name, leaf in state.params.items())


def of_init_params():
    def make(_, __):
        return dict(ps.init_params(partial(nn.Linear, 3, 2), seed=4).named_parameters())

    laws.check_pure(make, new_state(), {})


def of_remat():
    other = ps.train_step(ps.remat(PROBLEM.model), PROBLEM.objective, RULE)
    laws.check_same(step_of(), other, new_state(), PROBLEM.batch, steps=2)
    laws.check_step(other, new_state(), PROBLEM.batch, model=PROBLEM.model)


def of_loss_scale():
    scale = ps.DynamicLossScale(growth_interval=2)
    state = new_state(aux={"loss_scale": scale})
    laws.check_step(step_of(loss_scale=scale), state, PROBLEM.batch, make=partial(step_of, loss_scale=scale))


def of_an_objective(objective):
    laws.check_objective(PROBLEM.model, objective, PROBLEM.batch)
    laws.check_split_invariant(PROBLEM.model, objective, PROBLEM.batch, parts=())


def of_chain():
    laws.check_optimizer(lambda rate: ps.chain(ps.clip_by_global_norm(0.5), ps.adamw(rate)))
    laws.check_transformation(ps.chain(ps.clip_by_global_norm(0.5), ps.clip_by_global_norm(0.25)))


def of_a_source(source):
    """Law 1 of a source, and that each example is the same alone and beside others."""
    index = torch.tensor([2, 0, 1, 2])
    laws.check_pure(lambda given, _: source.fetch(given["index"]), {"index": index}, {})
    together = source.fetch(index)
    for row, i in enumerate(index.tolist()):
        assert bool((together[row] == source.fetch(torch.tensor([i]))[0]).all())


def of_a_dataframe():
    import pandas as pd

    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1, 5, 2], "kind": ["x", "y", "x"]})
    of_a_source(ps.data.dataframe(table, inputs={"tabular": ["a", "b"]}, label="kind"))


def of_an_image_folder():
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            Image.new("RGB", (2, 2), (i, 20, 30)).save(Path(folder) / f"{i}.png")
        (Path(folder) / "table.csv").write_text("image,label\n0.png,a\n1.png,b\n2.png,a\n")
        of_a_source(ps.data.image_folder(folder, Path(folder) / "table.csv"))


def of_examples():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = laws.make_model("perceptron", 0)

        def forward(self, inputs):
            with ps.random.examples(dim=1):
                kept = nn.functional.dropout(inputs["table"].T, 0.5, self.training).T
            return self.inner({"table": kept})

    model = Transposed()
    state = ps.init_state(model, RULE, seed=0)
    make = lambda k: ps.train_step(model, PROBLEM.objective, RULE, accumulate=k)  # noqa: E731
    laws.check_step(make(1), state, PROBLEM.batch, make=make, draws=True)


def tensors(length=6):
    return ps.data.from_tensors({"x": torch.arange(2.0 * length).reshape(length, 2)})


def of_pipeline():
    model = nn.Linear(2, 1)
    step = ps.train_step(model, lambda model, batch: ps.mean(model(batch["x"]).square()), ps.sgd(0.01))
    batches = ps.data.pipeline(tensors(), ps.data.shuffled(6, seed=0), batch_size=4)
    laws.check_resumable(step, ps.init_state(model, ps.sgd(0.01), seed=0), batches)


def of_loader():
    model = nn.Linear(2, 1)
    step = ps.train_step(model, lambda model, batch: ps.mean(model(batch["x"]).square()), ps.sgd(0.01))
    batches = ps.data.loader(EXAMPLES, batch_size=1, shuffle=True)
    laws.check_resumable(step, ps.init_state(model, ps.sgd(0.01), seed=0), batches)


EXAMPLES = [{"x": torch.tensor([float(i), 1.0])} for i in range(6)]


def of_memory_mapped():
    with tempfile.TemporaryDirectory() as folder:
        TensorDict({"x": torch.arange(12.0).reshape(6, 2)}, batch_size=[6]).memmap(folder)
        of_a_source(ps.data.memory_mapped(folder))


@ps.schedules.schedule
def halves(step, *, start: float, every: float):
    return start * 0.5 ** (step / every)


def of_from_torch():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    laws.check_schedule(ps.schedules.from_torch(torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)))


def of_plateau():
    machine = ps.schedules.plateau(patience=1)
    state = machine.init()
    for metric in (1.0, 2.0, 2.0, 0.5):
        given = {"state": state, "metric": torch.tensor(metric, dtype=torch.float64)}
        laws.check_pure(lambda given, _: machine.update(given["state"], given["metric"]), given, {})
        state = machine.update(state, given["metric"])
    assert float(machine.scale(state)) < 1


def of_reading(read, write):
    @FEW
    @given(one=laws.schedules())
    def gives_it_again(one):
        assert read(write(one)) == one

    gives_it_again()


def of_optimizer(make):
    return lambda: laws.check_optimizer(make)


def projecting(projection):
    return of_optimizer(lambda rate: ps.chain(ps.sgd(rate), projection))


def first_parameter():
    name, parameter = next(iter(PROBLEM.model.named_parameters()))
    return name, parameter.detach()


def heavy(name, parameter):
    return "matrix" if parameter.dim() > 1 else "vector"


def of_sam_step():
    make = partial(of_sam, ps.sam_step)
    laws.check_step(make(), new_state(), PROBLEM.batch, model=PROBLEM.model, make=make, skip=["own streams"])


def of_sam(step, count=1):
    return step(PROBLEM.model, PROBLEM.objective, RULE, rho=0.05, accumulate=count)


def of_lbfgs_step():
    optimizer = ps.optimizers.lbfgs(0.5, history=3)
    state = ps.init_state(PROBLEM.model, optimizer, seed=0)

    def make(count=1):
        return ps.lbfgs_step(
            PROBLEM.model, PROBLEM.objective, optimizer, line_search="backtracking", max_evaluations=4, accumulate=count
        )

    laws.check_step(make(), state, PROBLEM.batch, model=PROBLEM.model, make=make, skip=["own streams"])


def batch_values(model, batch):
    return model(batch["inputs"]).square()


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
        ps.value_and_grad(PROBLEM.model, PROBLEM.objective)
        if next(iter(inspect.signature(ps.value_and_grad).parameters)) == "model"
        else ps.value_and_grad(PROBLEM.objective, PROBLEM.model),
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
    "purestep.checkpoint": lambda: laws.check_resumable(step_of(), new_state(), [PROBLEM.batch] * 4, laws=["saved"]),
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


def required(function):
    return [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]


def of_a_schedule(name):
    on_drawn(laws.check_schedule, {"schedule": BASIC[name]}, max_examples=3, shrink=False)()


def of_a_random_function(function):
    """Laws 1, 2 and 3: the same bits for the same key and others for another; rows drawn apart, by ``start``, are those
    drawn together; under vmap over keys it gives those of each."""
    given = {name: RANDOM_ARGUMENTS[name] for name in required(function) if name != "key"}
    keys = torch.stack([ps.random.key(3), ps.random.key(2**33)])

    def call(key):
        return function(key, **given)

    laws.check_pure(lambda given, _: call(given["key"]), {"key": keys[0]}, {})
    together = torch.vmap(call)(keys)
    assert all(torch.equal(one, call(key)) for one, key in zip(together, keys, strict=True))
    assert not torch.equal(together[0], together[1])
    if "shape" in given and "start" in inspect.signature(function).parameters:
        rows, columns = given["shape"]
        rest = function(keys[0], **{**given, "shape": (rows - 2, columns)}, start=2 * columns)
        assert torch.equal(rest, together[0][2:])


def of_a_metric(function):
    """Law 2: however a batch is cut, the metric is the whole batch's."""
    names = required(function)
    squared = function is ps.metrics.r_squared
    arguments = {**METRIC_ARGUMENTS, **({"predicted": lambda batch: batch["weight"] * 0.9} if squared else {})}

    def objective(model, batch):
        metric = function(**{name: arguments[name](batch) for name in names})
        return ps.mean(model(batch["inputs"]).square()), {"metric": metric}

    parts = [(1, 4), (2, 0, 3)]
    model = laws.make_model("perceptron", 0)
    laws.check_split_invariant(model, objective, PROBLEM.batch, parts=parts)


def derived(room, name, value):
    """Return the law of an export whose kind says it, or why it has none; ``None`` where its kind says nothing."""
    if room == "purestep.schedules" and name in BASIC:
        return partial(of_a_schedule, name)
    if name in OPTIMIZERS:
        return partial(laws.check_optimizer, value)
    if name in TRANSFORMATIONS:
        return on_drawn(laws.check_transformation, {"transformation": TRANSFORMATIONS[name]}, max_examples=3)
    if room == "purestep.random" and inspect.isfunction(value) and required(value)[:1] == ["key"]:
        return partial(of_a_random_function, value) if {*required(value)} <= {"key", *RANDOM_ARGUMENTS} else None
    if room == "purestep.metrics" and inspect.isfunction(value):
        return partial(of_a_metric, value) if {*required(value)} <= {*METRIC_ARGUMENTS} else None
    if room == "purestep.metrics" and inspect.isclass(value):
        return TYPE
    if inspect.isclass(value) and issubclass(value, Exception):
        return "an error"
    if inspect.ismodule(value) and value in ROOMS.values():
        return "a room, whose own names are looked at"
    return None


WHAT_TO_DO = {
    "purestep.schedules": "give its constructor a strategy in BASIC of purestep/laws/_drawn_schedules.py",
    "purestep.transforms": "give it a strategy in TRANSFORMATIONS of purestep/laws/strategies.py",
    "purestep.random": "give its parameters values in RANDOM_ARGUMENTS of this file",
    "purestep.metrics": "give its parameters values in METRIC_ARGUMENTS of this file",
    "purestep": "an optimizer needs a strategy in OPTIMIZERS of purestep/laws/strategies.py, a transformation one in "
    "TRANSFORMATIONS",
}


def law_of(room, name, value):
    """Return the law of an export as a function, or the reason why it has none."""
    key = f"{room}.{name}"
    law = LAWS.get(key) or NONE.get(key) or derived(room, name, value)
    if law is None:
        first = f"{WHAT_TO_DO[room]}; or " if room in WHAT_TO_DO else ""
        pytest.fail(
            f"{key} is exported without a law: {first}add {key!r} to LAWS in tests/test_exports_have_laws.py, with a "
            "function that runs the laws it keeps (a bundle of purestep.laws, or check_pure), or to NONE, with the "
            "reason why no law can be asked of it"
        )
    return law


def exports():
    for room, module in ROOMS.items():
        public = [name for name, value in vars(module).items() if not (name.startswith("_") or inspect.ismodule(value))]
        for name in getattr(module, "__all__", public):
            yield room, name


EXPORTS = list(exports())


@pytest.mark.parametrize(("room", "name"), EXPORTS, ids=[f"{room}.{name}" for room, name in EXPORTS])
def test_it_keeps_its_laws(room, name, request):
    law = law_of(room, name, getattr(ROOMS[room], name))
    if law is of_compile:
        law(request)
    elif not isinstance(law, str):
        law()


def test_every_entry_is_of_an_export():
    known = {f"{room}.{name}" for room, name in EXPORTS}
    assert {*LAWS, *NONE} - known == set()
    assert not {*LAWS} & {*NONE}


def test_what_is_exported_from_a_room_is_there():
    assert len(EXPORTS) > 80
    assert {room for room, _ in EXPORTS} == {*ROOMS}


NEW = {
    "a function": ("purestep", "hessian", lambda state: state, "add 'purestep.hessian' to LAWS"),
    "a class": ("purestep", "Lookahead", type("Lookahead", (), {}), "or to NONE, with the reason"),
    "a module": ("purestep", "torch", torch, "purestep.torch is exported without a law"),
    "a schedule": ("purestep.schedules", "fancy", lambda: None, "a strategy in BASIC"),
    "a transformation": ("purestep.transforms", "negate", lambda: None, "a strategy in TRANSFORMATIONS"),
    "a metric": ("purestep.metrics", "auc", lambda curve: None, "values in METRIC_ARGUMENTS"),
    "a random function": ("purestep.random", "beta", lambda key, alpha: None, "values in RANDOM_ARGUMENTS"),
}


@pytest.mark.parametrize("kind", NEW)
def test_a_new_export_without_laws_fails(kind):
    room, name, value, says = NEW[kind]
    with pytest.raises(pytest.fail.Exception, match=says):
        law_of(room, name, value)


def test_the_laws_of_kinds_see_what_is_wrong():
    def draws(key, shape):
        return torch.rand(shape)

    def keyless(key, shape):
        return torch.zeros(shape)

    def mean_of_means(values):
        return ps.Mean(values.mean(), torch.ones((), dtype=values.dtype))

    with pytest.raises(laws.LawViolation, match="the random state of torch"):
        of_a_random_function(draws)

    def restarts(key, shape, *, start=0):
        return ps.random.uniform(key, shape)

    for wrong in (keyless, restarts):
        with pytest.raises(AssertionError):
            of_a_random_function(wrong)
    with pytest.raises(laws.LawViolation, match="law 2"):
        of_a_metric(mean_of_means)
    with pytest.raises(laws.LawViolation, match="law 1"):
        pure(lambda tensor: tensor.add_(1), torch.zeros(2))

    class Forgets:
        def fetch(self, index):
            return TensorDict({"x": torch.arange(len(index))}, batch_size=[len(index)])

    with pytest.raises(AssertionError):
        of_a_source(Forgets())
