"""Binding a module: its structure, its ties and its modes, and what never happens to the user's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import purestep as ps
from purestep.functional import BoundModule, trainable_names
from purestep.laws._compare import same_bits
from purestep.laws._world import copies, module_leaves


def values_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}, dict(model.named_buffers())


class LanguageModel(nn.Module):
    """A GRU between an embedding and the same weights as its output."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.core = nn.GRU(6, 6, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.output = nn.Linear(6, 11, bias=False)
        self.output.weight = self.embedding.weight

    def encode(self, tokens):
        return self.norm(self.core(self.embedding(tokens))[0])

    def forward(self, tokens):
        return self.output(self.encode(tokens))


def next_token(model, batch):
    logits = model(batch["tokens"][:, :-1])
    return ps.mean(F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten(), reduction="none"))


def tokens(length=4, seed=0):
    return {"tokens": torch.randint(0, 11, (length, 5), generator=torch.Generator().manual_seed(seed))}


@pytest.fixture
def language_model():
    torch.manual_seed(0)
    return LanguageModel().double()


def test_tied_weights_are_one_leaf_and_stay_tied(language_model):
    optimizer = ps.sgd(0.5, momentum=0.9)
    state = ps.init_state(language_model, optimizer, seed=0)
    assert "embedding.weight" in state.params
    assert "output.weight" not in state.params
    step = ps.train_step(language_model, next_token, optimizer)
    for _ in range(3):
        state, _ = step(state, tokens())

    reference = copy.deepcopy(language_model)
    torch_optimizer = torch.optim.SGD(reference.parameters(), 0.5, momentum=0.9, foreach=False)
    for _ in range(3):
        torch_optimizer.zero_grad()
        next_token(reference, tokens()).value().backward()
        torch_optimizer.step()
    for name, parameter in reference.named_parameters():
        assert torch.allclose(state.params[name], parameter, rtol=0, atol=1e-12), name
    loaded = ps.load_into(copy.deepcopy(language_model), state)
    assert loaded.output.weight is loaded.embedding.weight


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_those_of_backward(language_model, accumulate):
    state = ps.init_state(language_model, ps.sgd(0.1), seed=0)
    gradient = ps.grad_step(language_model, next_token, accumulate=accumulate)(state, tokens()).mean()
    next_token(language_model, tokens()).value().backward()
    for name, parameter in language_model.named_parameters():
        assert torch.allclose(gradient[name], parameter.grad, rtol=0, atol=1e-14), name


def test_an_lstm_with_projections_in_a_stack_gets_its_values():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, batch_first=True).double()
    batch = {"x": torch.randn(2, 5, 3, dtype=torch.float64)}

    def objective(model, batch):
        return ps.mean(model(batch["x"])[0].square())

    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    # Another model's values, so that an answer from the module's own would show.
    state = state.replace(params=state.params.apply(lambda leaf: leaf * 1.5))
    gradient = ps.grad_step(model, objective)(state, batch).mean()
    reference = ps.load_into(copy.deepcopy(model), state)
    objective(reference, batch).value().backward()
    for name, parameter in reference.named_parameters():
        assert torch.allclose(gradient[name], parameter.grad, rtol=1e-12, atol=1e-14), name


def test_attributes_and_other_methods_of_the_module_work(language_model):
    seen = {}

    def objective(model, batch):
        seen.update(kind=type(model), hidden=model.core.hidden_size)
        return ps.mean(model.encode(batch["tokens"]).square() + model.embedding.weight.sum())

    state = ps.init_state(language_model, ps.sgd(0.1), seed=0)
    loss, _, _ = ps.loss_step(language_model, objective)(state, tokens())
    expected = objective(language_model, tokens())
    assert loss.value().item() == pytest.approx(expected.value().item(), rel=1e-12)
    assert seen == {"kind": LanguageModel, "hidden": 6}


def test_the_objective_may_call_the_module_several_times(language_model):
    def twice(model, batch):
        return ps.mean((model(batch["tokens"]) - model(batch["tokens"].flip(0))).square())

    state = ps.init_state(language_model, ps.sgd(0.1), seed=0)
    gradient = ps.grad_step(language_model, twice)(state, tokens()).mean()
    twice(language_model, tokens()).value().backward()
    assert torch.allclose(gradient["core.weight_hh_l0"], language_model.core.weight_hh_l0.grad, atol=1e-13)


def batch_norms():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)).double()


def square(model, batch):
    return ps.mean(model(batch["x"]).square())


def inputs(length=6, width=3):
    return {"x": torch.randn(length, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}


def test_the_users_module_is_untouched():
    model = batch_norms()
    model[1].eval()
    before = copies(module_leaves(model))
    optimizer = ps.adamw(0.1)
    state = ps.init_state(model, optimizer, seed=0)
    for step in (
        ps.train_step(model, square, optimizer, accumulate=2),
        ps.eval_step(model, square),
        ps.loss_step(model, square),
        ps.grad_step(model, square, trainable="0.*"),
    ):
        step(state, inputs())
    after = module_leaves(model)
    assert set(before) == set(after)
    assert all(same_bits(after[path], before[path]) for path in before)


def test_a_submodule_in_evaluation_mode_stays_frozen():
    model = batch_norms()
    model[1].eval()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    after, _ = ps.train_step(model, square, ps.sgd(0.1))(state, inputs())
    assert torch.equal(after.buffers["1.running_mean"], state.buffers["1.running_mean"])
    assert after.buffers["1.num_batches_tracked"].item() == 0
    assert not torch.equal(after.buffers["3.running_mean"], state.buffers["3.running_mean"])
    assert after.buffers["3.num_batches_tracked"].item() == 1


def test_a_module_in_evaluation_mode_is_trained_in_training_mode_all_the_same():
    model = batch_norms()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    expected, _ = ps.train_step(model, square, ps.sgd(0.1))(state, inputs())
    after, _ = ps.train_step(model.eval(), square, ps.sgd(0.1))(state, inputs())
    assert torch.equal(after.params["0.weight"], expected.params["0.weight"])
    assert not model.training


def test_evaluation_mode_reads_the_running_statistics_and_writes_none():
    model = batch_norms()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    model.eval()
    loss, buffers, _ = ps.loss_step(model, square, training=False)(state, inputs())
    assert loss.value().item() == pytest.approx(square(model, inputs()).value().item(), rel=1e-12)
    assert all(torch.equal(buffers[name], leaf) for name, leaf in state.buffers.items())


def test_buffers_come_back_and_those_given_keep_their_bits():
    model = batch_norms()
    bound = BoundModule(model)
    params, buffers = values_of(model)
    kept = {name: buffer.clone() for name, buffer in buffers.items()}
    _, after = bound(lambda module, x: module(x), params, buffers, inputs()["x"])
    assert all(torch.equal(buffers[name], kept[name]) for name in kept)
    reference = copy.deepcopy(model)
    reference(inputs()["x"])
    for name, buffer in reference.named_buffers():
        assert torch.allclose(after[name].to(torch.float64), buffer.to(torch.float64)), name


def test_a_buffer_that_is_replaced_comes_back():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.seen = self.seen + x.numel()
            return x * self.scale

    model = Counter()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    step = ps.train_step(model, square, ps.sgd(0.1), accumulate=2)
    batch = {"x": torch.ones(6)}
    state, _ = step(state, batch)
    state, _ = step(state, batch)
    assert state.buffers["seen"].item() == 12
    assert model.seen.item() == 0


def test_a_tensor_that_is_no_parameter_is_a_constant():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2).double()
            self.scale = torch.full((2,), 3.0, dtype=torch.float64)

        def forward(self, x):
            return self.linear(x) * self.scale

    model = Scaled()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    loss, _, _ = ps.loss_step(model, square)(state, inputs())
    assert loss.value().item() == pytest.approx(square(model, inputs()).value().item(), rel=1e-12)


def test_shared_submodules_and_parameter_containers_work():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.again = self.first
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.full((3,), 2.0))])
            self.shifts = nn.ParameterDict({"a": nn.Parameter(torch.zeros(3))})

        def forward(self, x):
            return self.again(self.first(x) * self.scales[1]) * self.scales[0] + self.shifts["a"]

    model = Shared().double()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    gradient = ps.grad_step(model, square)(state, inputs()).mean()
    square(model, inputs()).value().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradient[name], parameter.grad, atol=1e-13), name


def test_a_hooked_and_weight_normed_module_works():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4).double())
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(1))
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    gradient = ps.grad_step(model, square)(state, inputs()).mean()
    square(model, inputs()).value().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradient[name], parameter.grad, atol=1e-13), name
    assert len(calls) == 2


# What is refused.
class PlainList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.weights = [self.layer.weight]

    def forward(self, x):
        return x @ self.weights[0]


def test_a_parameter_in_a_plain_list_is_refused():
    with pytest.raises(ValueError, match=r"keeps 'layer.weight' also in the plain attribute weights"):
        BoundModule(PlainList())


def test_lazy_parameters_are_refused():
    with pytest.raises(TypeError, match=r"parameters without a shape \('0.weight', '0.bias'\): call it once"):
        BoundModule(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_refused(wrap):
    wrapped = wrap(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=f"must be the plain module, got a {type(wrapped).__name__}: unwrap it"):
        BoundModule(wrapped)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_is_refused():
    with pytest.raises(TypeError, match="must be the plain module"):
        BoundModule(torch.jit.script(nn.Linear(2, 2)))


def test_what_is_no_module_or_has_no_parameters_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got .* of type function"):
        BoundModule(lambda x: x)
    with pytest.raises(ValueError, match="model must have parameters, got a Identity with none"):
        BoundModule(nn.Identity())


def test_a_module_that_cannot_be_copied_is_refused():
    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    with pytest.raises(TypeError, match=r"model cannot be copied.*RuntimeError: no copies"):
        BoundModule(Uncopied(2, 2))


# Which parameters are trained.
def head_and_body():
    return nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("trainable", "names"),
    [
        (None, ("body.weight", "body.bias", "head.weight", "head.bias")),
        ("head.*", ("head.weight", "head.bias")),
        ("*.bias", ("body.bias", "head.bias")),
        (["head.bias", "body.weight"], ("body.weight", "head.bias")),
        (lambda name, parameter: parameter.dim() == 2, ("body.weight", "head.weight")),
    ],
)
def test_trainable_names(trainable, names):
    assert trainable_names(head_and_body(), trainable) == names


def test_trainable_follows_requires_grad_by_default():
    model = head_and_body()
    model["body"].requires_grad_(False)
    assert trainable_names(model, None) == ("head.weight", "head.bias")


@pytest.mark.parametrize(
    ("trainable", "fragments"),
    [
        ("haed.weight", ("trainable='haed.weight' names no parameter", "did you mean 'head.weight'")),
        (["head.*", "tail.*"], ("trainable='tail.*' names no parameter", "the model has 'body.weight'")),
        ([], ("trainable must name at least one parameter",)),
        (lambda name, parameter: False, ("trainable must choose at least one of 'body.weight'", "chose none")),
    ],
)
def test_a_trainable_that_names_nothing_is_refused(trainable, fragments):
    with pytest.raises(ValueError) as caught:
        trainable_names(head_and_body(), trainable)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_model_that_is_frozen_whole_is_refused():
    with pytest.raises(ValueError, match="requires_grad=True, and the model has none"):
        trainable_names(head_and_body().requires_grad_(False), None)
