"""A decoder asked for several texts of each row at once: the text side by side, none of which sees another.

The encoder's states, and their keys and values in the decoder, are computed once for a row, not once for each text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trial_worker.tasks.interface import Batch, Choices


def decoder_inputs(model: PreTrainedModel, choices: Choices, rows: int) -> dict[str, Tensor]:
    """What the decoder is given of so many rows: ids (rows, tokens), and the mask (rows, 1, tokens, tokens) to add."""
    counts = torch.bincount(choices.owners)
    inside = torch.cat([torch.arange(int(count)) for count in counts]).to(choices.owners.device)
    grid = choices.ids.new_full((len(counts), int(counts.max())), -100)
    grid[choices.owners, inside] = choices.ids
    shifted: Tensor = model.prepare_decoder_input_ids_from_labels(grid)  # type: ignore[operator]
    ids = shifted[choices.owners, inside]
    sees = (choices.owners[:, None] == choices.owners) & (inside[:, None] >= inside)
    barred = torch.zeros(sees.shape, dtype=model.dtype, device=ids.device)
    barred.masked_fill_(~sees, torch.finfo(model.dtype).min)
    return {
        "decoder_input_ids": ids.expand(rows, -1),
        "decoder_attention_mask": barred.expand(rows, 1, -1, -1),
    }


def choice_scores(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(rows, texts) float32, or float64 if the model is: the log-likelihood of each of the batch's choices."""
    assert batch.choices is not None
    ids, owners = batch.choices.ids, batch.choices.owners
    logits: Tensor = model(**batch.inputs, **decoder_inputs(model, batch.choices, batch.rows)).logits
    wide = (logits if logits.dtype == torch.float64 else logits.float()).view(batch.rows, len(ids), -1)
    tokens = wide.gather(2, ids.expand(batch.rows, -1)[..., None]).squeeze(2) - wide.logsumexp(-1)
    return tokens.new_zeros(batch.rows, int(owners[-1]) + 1).index_add(1, owners, tokens)


@torch.inference_mode()
def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether texts side by side have the logits that each has alone: not where a decoder counts from the first."""
    most = int(model.config.get_text_config().vocab_size)
    device = model.device
    ids = torch.arange(5, device=device)[None] % most
    choices = Choices((torch.arange(5, device=device) * 3 + 4) % most, torch.tensor([0, 0, 0, 1, 1], device=device))
    together = model(input_ids=ids, **decoder_inputs(model, choices, 1)).logits
    alone = [
        model(input_ids=ids, **decoder_inputs(model, Choices(part, torch.zeros_like(part)), 1)).logits
        for part in (choices.ids[:3], choices.ids[3:])
    ]
    return torch.allclose(together, torch.cat(alone, 1), rtol=1e-2, atol=1e-2 * float(together.abs().max()))
