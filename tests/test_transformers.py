"""Models that nobody here wrote, trained by a step and by a plain torch loop: the same parameters."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import purestep as ps

transformers = pytest.importorskip("transformers")

CLASSES, VOCABULARY, STEPS = 3, 17, 20


def bert():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config), tokens(with_mask=True), classify


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config), tokens(with_mask=False), next_token


def vit():
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.ViTForImageClassification(config), images(8), classify


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    )
    return transformers.ResNetForImageClassification(config), images(16), classify


def tokens(*, with_mask):
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(0, VOCABULARY, (6, 10), generator=generator)}
    lengths = torch.tensor([10, 7, 3, 10, 5, 8])
    mask = (torch.arange(10) < lengths[:, None]).long()
    if with_mask:
        inputs["attention_mask"] = mask
    return {**inputs, "label": torch.randint(0, CLASSES, (6,), generator=generator), "counted": mask.bool()}


def images(size):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, size, size, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "label": torch.randint(0, CLASSES, (6,), generator=generator)}


def inputs_of(batch):
    return {name: batch[name] for name in batch if name not in ("label", "counted")}


def classify(model, batch):
    """The models' own losses are means, whose denominators are gone: write the sum and the count."""
    logits = model(**inputs_of(batch)).logits
    return ps.mean(F.cross_entropy(logits, batch["label"], reduction="none"))


def next_token(model, batch):
    logits = model(**inputs_of(batch), use_cache=False).logits[:, :-1]
    values = F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none")
    return ps.mean(values, where=batch["counted"][:, 1:].flatten())


MODELS = [bert, gpt2, vit, resnet]


def build(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch, objective = make()
    return model.double().train(), batch, objective


def plain_loop(model, batch, objective):
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, foreach=False)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = objective(model, batch).value()
        loss.backward()
        optimizer.step()
    return model, loss.item()


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_twenty_steps_lead_where_a_plain_loop_leads(make):
    model, batch, objective = build(make)
    optimizer = ps.adamw(1e-3, weight_decay=0.05)
    step = ps.train_step(model, objective, optimizer)
    state = ps.init_state(model, optimizer, seed=0)
    for _ in range(STEPS):
        state, metrics = step(state, batch)
    reference, loss = plain_loop(model, batch, objective)
    assert metrics["loss"].value().item() == pytest.approx(loss, rel=1e-9)
    moved = 0.0
    for name, parameter in reference.named_parameters():
        assert (state.params[name] - parameter).abs().max().item() < 1e-9, name
        moved = max(moved, (parameter - model.get_parameter(name)).abs().max().item())
    assert moved > 5e-3
    for name, buffer in reference.named_buffers():
        assert torch.allclose(state.buffers[name].double(), buffer.double(), rtol=0, atol=1e-9), name


@pytest.mark.parametrize("make", [bert, gpt2, vit], ids=lambda make: make.__name__)
def test_any_micro_batches_lead_there_too(make):
    """Padded tokens count as often as there are of them, whichever micro-batch they fall into."""
    model, batch, objective = build(make)
    optimizer = ps.sgd(0.1)
    state = ps.init_state(model, optimizer, seed=0)
    whole, _ = ps.train_step(model, objective, optimizer)(state, batch)
    for accumulate in (2, 4):
        got, _ = ps.train_step(model, objective, optimizer, accumulate=accumulate)(state, batch)
        for name, leaf in whole.params.items():
            assert torch.allclose(got.params[name], leaf, rtol=0, atol=1e-13), name


def test_a_model_built_on_meta_is_the_one_that_was_built():
    """From the seed alone, the state is what the model's own initialisation gives."""
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    model, state = ps.init_state_from_meta(lambda: transformers.GPT2LMHeadModel(config), ps.sgd(0.1), seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        built = transformers.GPT2LMHeadModel(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert list(state.params.keys()) == [name for name, _ in built.named_parameters()]
    for name, parameter in built.named_parameters():
        assert torch.equal(state.params[name], parameter), name
    assert "lm_head.weight" not in state.params  # tied to the embedding
