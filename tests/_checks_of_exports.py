"""How the laws are run over one export: a function for each, or for each kind; ``_laws_of_exports.py`` says which."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws
from purestep.execution.compile import compiler_missing

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


def of_a_checkpoint(read):
    """Law 1 of what reads one: the same of the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        ps.checkpoint.save(
            f"{folder}/one", new_state(), data={"epoch": 1}, extra=["note"], metrics={"a": torch.ones(2)}
        )
        pure(read, f"{folder}/one")


def of_manager():
    """Law 4: the newest and the best have the bits of what was saved."""
    first, second = new_state(), step_of()(new_state(), PROBLEM.batch)[0]
    kept = {"keep_best": 1, "best": ("loss", "min"), "asynchronous": True}
    with tempfile.TemporaryDirectory() as folder, ps.checkpoint.Manager(folder, **kept) as manager:
        manager.save(first, scores={"loss": 1.0})
        manager.save(second, scores={"loss": 2.0})
        manager.wait()
        found = [ps.checkpoint.load(path, like=new_state()) for path in (manager.latest(), manager.best())]
    for got, right in zip(found, (second, first), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got.values(True, True), right.values(True, True), strict=True))


def of_weights():
    with tempfile.TemporaryDirectory() as folder:
        save_file(ps.checkpoint.state_dict(new_state()), f"{folder}/model.safetensors")
        pure(ps.checkpoint.load_weights, folder, new_state())
