"""PyTorch's AdamW on the joint batch, and the model of transformers that both steps in PyTorch train."""

from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step.problem import LEARNING_RATE, Batch, Problem
from gems_jax.models import T5Config
from gems_jax.training.estimate.abstract import ANSWER


class TorchRun:
    """AdamW on the joint batch; `begin` makes the model that `step` trains. There is nothing to compile."""

    refreshes = False

    def __init__(self, problem: Problem):
        self._problem = problem

    def begin(self) -> None:
        self.model = torch_model(self._problem)
        self.kernels = [p for p in self.model.parameters() if p.requires_grad]
        self._joint = tensors(self._problem.joint_batch())
        self._optimiser = torch.optim.AdamW(self.kernels, lr=LEARNING_RATE)

    def step(self) -> np.ndarray:
        loss = self.loss(self._joint)
        loss.backward()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return np.asarray(loss.item())

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean over the answers' tokens of one batch ``[B, ...]``; the output layer sees these alone."""
        given = {name: x for name, x in batch.items() if name in ("input_ids", "attention_mask", "decoder_input_ids")}
        hidden = self.model.model(**given) if hasattr(self.model, "model") else self._decoded(given)
        logits = self.model.lm_head(hidden[0][:, -ANSWER:])
        labels = batch["labels"][:, -ANSWER:]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def _decoded(self, given: dict[str, torch.Tensor]) -> Any:
        encoded = self.model.encoder(given["input_ids"], given["attention_mask"])[0]
        return self.model.decoder(
            given["decoder_input_ids"],
            encoder_hidden_states=encoded,
            encoder_attention_mask=given["attention_mask"],
            use_cache=False,
        )

    def state_bytes(self) -> dict[str, int]:
        held = [x for state in self._optimiser.state.values() for x in state.values()]
        return {"optimiser": sum(x.nbytes for x in held if torch.is_tensor(x)), "null_space": 0}

    def flops(self) -> float:
        """Of the products of a plain step."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return float(counter.get_total_flops())


def torch_model(problem: Problem) -> Any:
    """The same shape in transformers, without dropout, its kernels alone trained."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = problem.config
    shared = {"vocab_size": config.vocab_size, "tie_word_embeddings": False, "use_cache": False}
    model: Any
    if isinstance(config, T5Config):
        names = ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
        shape = {name: getattr(config, name) for name in names}
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**shape, **shared, feed_forward_proj="gated-gelu", dropout_rate=0.0)
        )
        # Drawn as ours: from transformers' own the loss starts at 146 nats, and is 0 after five steps on one batch.
        head = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
        model.lm_head.weight = torch.nn.Parameter(head)
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **shared,
                hidden_size=config.d_model,
                intermediate_size=config.d_ff,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.head_dim,
            )
        )
    if problem.size.checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    kernels = {m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in kernels)
    return model.train()


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array).long() for name, array in batch.items()}
