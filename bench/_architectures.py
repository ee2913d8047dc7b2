"""Models of transformers, tiny and with random weights: how each is made, what batch it takes, what its loss is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from tensordict import TensorDict
from torch import Tensor, nn

import purestep as ps

VOCABULARY, CLASSES, LONGEST, IMAGE = 17, 3, 10, 32
# Seven examples, so that four micro-batches are 2, 2, 2 and 1: of 17, 13, 13 and 2 tokens.
LENGTHS = (10, 7, 3, 10, 5, 8, 2)


class Values(NamedTuple):
    """What a loss is made of: the values that a mean is taken of, which of them count (``None``: all), and an amount
    that is no mean over examples."""

    values: Tensor
    where: Tensor | None = None
    amount: Tensor | None = None


@dataclass(frozen=True)
class Architecture:
    """One model to be checked.

    Attributes:
        name, kind: what it is called, and what it stands for.
        make: builds the model; ``make(p)`` has dropout, or what it has in its place, of probability ``p``.
        batch: makes the batch, seven examples.
        losses: from the model's logits. It is a sum over examples, but for ``coupling``.
        random: what draws random numbers in it, or ``""``.
        float32: what the model itself computes in float32 whatever its dtype, or ``""``.
        coupling: what makes the examples of a batch depend on each other, or ``""``.
        freeze: switches off what couples in the model, in place.
        coupled_losses: ``losses`` with what couples in the loss, where that is where it is.
        prepare: what has to be done to the model before it can be compiled, in place.
        needed: what the model needed, in words.
    """

    name: str
    kind: str
    make: Callable[[float], nn.Module]
    batch: Callable[[], TensorDict]
    losses: Callable[[nn.Module, Any], Values]
    random: str = ""
    float32: str = ""
    coupling: str = ""
    freeze: Callable[[nn.Module], None] = lambda model: None
    coupled_losses: Callable[[nn.Module, Any], Values] | None = None
    prepare: Callable[[nn.Module, Any], Any] | None = None
    needed: str = ""

    def build(self, p: float = 0.0, *, frozen: bool = False) -> nn.Module:
        """The model in float64 and in training mode, always of the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.make(p).double().train()
        if frozen:
            self.freeze(model)
        return model

    def objective(self, model: nn.Module, batch: Any) -> ps.Mean:
        values, where, _ = self.losses(model, batch)
        return ps.mean(values, where=where)

    def coupled_objective(self, model: nn.Module, batch: Any) -> ps.Mean | ps.Loss:
        """With all that the loss has: right for a whole batch, and another one for each way to cut it."""
        values, where, amount = (self.coupled_losses or self.losses)(model, batch)
        loss = ps.mean(values, where=where)
        return loss if amount is None else loss + ps.once(amount)

    def plain_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The coupled objective in plain torch, for a loop without purestep."""
        values, where, amount = (self.coupled_losses or self.losses)(model, batch)
        loss = (values if where is None else values[where]).mean()
        return loss if amount is None else loss + amount


# --- batches ---------------------------------------------------------------------------------------------------------


def tokens() -> TensorDict:
    """Padded sequences; ``target`` is a second one for each, of other lengths."""
    generator = torch.Generator().manual_seed(0)
    count, lengths = len(LENGTHS), torch.tensor(LENGTHS)
    content = {
        "input_ids": torch.randint(1, VOCABULARY, (count, LONGEST), generator=generator),
        "attention_mask": (torch.arange(LONGEST) < lengths[:, None]).long(),
        "target": torch.randint(1, VOCABULARY, (count, LONGEST), generator=generator),
        "target_mask": torch.arange(LONGEST) < lengths.flip(0)[:, None],
        "label": torch.randint(0, CLASSES, (count,), generator=generator),
    }
    return TensorDict(content, batch_size=[count])


def images() -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    count = len(LENGTHS)
    pixels = torch.randn(count, 3, IMAGE, IMAGE, generator=generator, dtype=torch.float64)
    label = torch.randint(0, CLASSES, (count,), generator=generator)
    return TensorDict({"pixel_values": pixels, "label": label}, batch_size=[count])


# --- losses, from logits: the models' own are means already, and their denominators are gone --------------------------


def classified(model: nn.Module, batch: Any) -> Values:
    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask", "pixel_values")}
    return Values(F.cross_entropy(model(**inputs).logits, batch["label"], reduction="none"))


def next_tokens(model: nn.Module, batch: Any) -> Values:
    """Of each token but the first, where it is no padding."""
    return _next_tokens(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **_UNCACHED), batch)


def next_tokens_balanced(model: nn.Module, batch: Any) -> Values:
    """With the router's load-balancing loss, which the model takes of all the tokens that it is given."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    output = model(**inputs, **_UNCACHED, output_router_logits=True)
    return _next_tokens(output, batch)._replace(amount=model.router_aux_loss_coef * output.aux_loss)


def translated(model: nn.Module, batch: Any) -> Values:
    """Of each token of the target, after those before it; the decoder begins with 0."""
    target = batch["target"]
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=F.pad(target, (1, -1)),
        decoder_attention_mask=F.pad(batch["target_mask"].long(), (1, -1), value=1),
        **_UNCACHED,
    )
    return Values(_of_tokens(output.logits, target), batch["target_mask"])


# A cache of keys and values is for generating.
_UNCACHED = {"use_cache": False}


def _next_tokens(output: Any, batch: Any) -> Values:
    values = _of_tokens(output.logits[:, :-1], batch["input_ids"][:, 1:])
    return Values(values, batch["attention_mask"][:, 1:].bool())


def _of_tokens(logits: Tensor, target: Tensor) -> Tensor:
    """``(examples, tokens)``"""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)


# --- models ----------------------------------------------------------------------------------------------------------


def bert(p: float) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LONGEST,
        num_labels=CLASSES,
        hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2(p: float) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "n_positions": LONGEST, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**sizes, **special, resid_pdrop=p, embd_pdrop=p, attn_pdrop=p)
    return transformers.GPT2LMHeadModel(config)


# What the decoders with rotary embeddings share.
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def llama(p: float) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DECODER, attention_dropout=p))


def mixtral(p: float) -> nn.Module:
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**_DECODER, **_EXPERTS, attention_dropout=p))
    model.set_experts_implementation("batched_mm")
    return model


def qwen3_moe(p: float) -> nn.Module:
    sizes = {**_DECODER, **_EXPERTS, "head_dim": 4, "moe_intermediate_size": 12}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes, attention_dropout=p))
    model.set_experts_implementation("batched_mm")
    return model


def t5(p: float) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    special = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **special, dropout_rate=p))


def vit(p: float) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=IMAGE,
        patch_size=8,
        num_labels=CLASSES,
        hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )
    return transformers.ViTForImageClassification(config)


def resnet(p: float) -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    )
    return transformers.ResNetForImageClassification(config)


def convnext(p: float) -> nn.Module:
    config = transformers.ConvNextConfig(
        hidden_sizes=[4, 8],
        depths=[1, 2],
        num_stages=2,
        image_size=IMAGE,
        num_labels=CLASSES,
        drop_path_rate=p,
        layer_scale_init_value=0.5,
    )
    return transformers.ConvNextForImageClassification(config)


def mamba(p: float) -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        time_step_rank=2,
    )
    return transformers.MambaForCausalLM(config)


def freeze_batchnorm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def record_router(model: nn.Module, batch: Any) -> None:
    """The first call that asks for the router's logits installs hooks, behind a lock that Dynamo cannot trace."""
    with torch.no_grad():
        next_tokens_balanced(model, batch)


_ATTENTION = "dropout of attention"
_NORM = "RMSNorm and rotary angles"
_BALANCE = "the load-balancing loss"
_EXPERTS_NEEDED = (
    '`set_experts_implementation("batched_mm")`; to be compiled with the load-balancing loss, one call with '
    "`output_router_logits=True` before the step is made"
)

_DENSE = [
    Architecture("BERT", "encoder", bert, tokens, classified, random="dropout"),
    Architecture("GPT-2", "decoder, tied embeddings", gpt2, tokens, next_tokens, random="dropout"),
    Architecture("Llama", "decoder", llama, tokens, next_tokens, random=_ATTENTION, float32=_NORM),
    Architecture(
        "T5", "encoder-decoder, tied embeddings", t5, tokens, translated, random="dropout", float32="RMSNorm's variance"
    ),
    Architecture("ViT", "vision transformer", vit, images, classified, random="dropout"),
    Architecture(
        "ResNet",
        "convolutional, BatchNorm",
        resnet,
        images,
        classified,
        coupling="BatchNorm in training mode",
        freeze=freeze_batchnorm,
    ),
    Architecture("ConvNeXt", "convolutional, LayerNorm", convnext, images, classified, random="stochastic depth"),
    Architecture("Mamba", "state-space", mamba, tokens, next_tokens, float32="the scan, RMSNorm and the logits"),
]
_MIXTURES = [
    Architecture(
        name,
        "mixture of experts",
        make,
        tokens,
        next_tokens,
        random=_ATTENTION,
        float32=f"the router, {_NORM}",
        coupling=_BALANCE,
        coupled_losses=next_tokens_balanced,
        prepare=record_router,
        needed=_EXPERTS_NEEDED,
    )
    for name, make in (("Mixtral", mixtral), ("Qwen3-MoE", qwen3_moe))
]
ARCHITECTURES = {each.name: each for each in (*_DENSE, *_MIXTURES)}
