"""Output mechanisms for ``model.generate`` of transformers, without the rest of this package.

Here: a ``LogitsProcessor`` that draws the token itself and leaves it as the only one possible. Elsewhere: our own loop
(output_decoding.py), prices (privacy/output_*.py). Shapes: B rows of a generate call, G texts, R = B / G rows of a
text, V vocabulary.

    mechanism = Softmax(shards=8, clip=1.0, tokens=64, texts_per_batch=1, adjacency="many")
    config = GenerationConfig(max_new_tokens=64, eos_token_id=2, pad_token_id=0)
    processor = OutputMechanismProcessor(mechanism, generation_config=config, public=PublicRows(model, [public_prompt]))
    model.generate(eight_private_prompts, generation_config=config, logits_processor=[processor])
    mechanism.epsilon(delta=1e-6)

Guarantee:
    Whatever generate does after this processor, the token is the one that the mechanism drew. What stands before it
    works on private logits, which the clip bounds. A generation config that truncates or penalises is refused all the
    same: it would promise a distribution that is not drawn from. A call draws at most ``tokens`` tokens for at most
    ``texts_per_batch`` texts, then raises.
"""

from collections.abc import Sequence

import torch
from torch import LongTensor, Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from safesynthdp.errors import BudgetExhausted, ConfigError
from safesynthdp.generation.output_decoding import Rule, Text
from safesynthdp.generation.padded import PaddedMemory
from safesynthdp.privacy.output_draws import Decoding, OutputKey
from safesynthdp.privacy.output_pricing import OutputMechanism

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "assistant_early_exit": (),
    "prompt_lookup_num_tokens": (),
}


class PublicRows:
    """The public branch of a generate call: the same tokens after public prompts, in forward calls of its own."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        self._memory, self._prompts = PaddedMemory(model), prompts
        self._is_started = False

    @torch.inference_mode()
    def next(self, tokens_G: Tensor | None) -> Tensor:
        """Return [G, V] logits after one more token; None for the first."""
        if tokens_G is None or not self._is_started:
            self._is_started = True
            return self._memory.start(self._prompts, width=max(len(prompt) for prompt in self._prompts))
        return self._memory.append(tokens_G)


class OutputMechanismProcessor(LogitsProcessor):
    """Draws every token of one generate call through a mechanism.

    Rows of one text stand side by side and get the same token: R = ``shards`` rows, or one with ``single``. Each holds
    other records, so generate must bring exactly ``num_texts * R`` rows: ``num_return_sequences`` and ``num_beams``
    repeat rows, which would count a record twice, and are refused. Under ``null`` say which rows hold a record: the row
    of a missing one must add nothing at all, and the public prompt in its place adds the rounding of another shape.

    Args:
        mechanism: With its price.
        generation_config: The one that generate is called with.
        num_texts: G, texts of the call; None = all that are priced, ``texts_per_batch``.
        public: The public branch; None needs ``recentre``, or a mechanism that clips nothing.
        present: For each of the R rows of a text, whether it holds a record; the others hold any prompt and are not
            looked at. None = all; ``null`` with a clip needs it.
        top_k: Candidates: likeliest tokens of the public branch; None = all.
        recentre: Clip the logits themselves.
        decoding: Of a noisy vector.
        key: None = fresh OS entropy.

    Raises:
        ConfigError: If the generation config truncates, penalises or searches, or asks for more tokens than are priced.
    """

    def __init__(
        self,
        mechanism: OutputMechanism,
        *,
        generation_config: GenerationConfig,
        num_texts: int | None = None,
        public: PublicRows | None = None,
        present: Sequence[bool] | None = None,
        top_k: int | None = None,
        recentre: bool = False,
        decoding: Decoding | None = None,
        key: OutputKey | None = None,
    ) -> None:
        refuse_generation_config(generation_config, tokens=mechanism.tokens)
        mechanism.refuse_draws()
        if present is None and hasattr(mechanism, "clip") and mechanism.width == 2:
            raise ConfigError(
                f"present is missing: adjacency={mechanism.adjacency} is priced for rows that can be left out; say "
                "which of them hold a record, or use replace or many"
            )
        if present is not None and len(present) != mechanism.shards:
            raise ConfigError(
                f"present names {len(present)} rows of a text, shards={mechanism.shards}; name each of them"
            )
        if public is None and top_k is not None:
            raise ConfigError(f"top_k={top_k} needs a public model: the likeliest tokens of a private one are private")
        self._rule = Rule(
            mechanism=mechanism,
            end=_end(generation_config),
            tokens=mechanism.tokens,
            top_k=top_k,
            recentre=recentre,
            decoding=decoding or Decoding(),
        )
        self._mechanism, self._public = mechanism, public
        self._present = [i for i in range(mechanism.shards) if present is None or present[i]]
        self._num_texts = mechanism.texts_per_batch if num_texts is None else num_texts
        if self._num_texts > mechanism.texts_per_batch:
            raise BudgetExhausted(
                f"num_texts={num_texts}: the price covers texts_per_batch={mechanism.texts_per_batch}; price them all"
            )
        self._key = key or OutputKey.fresh()
        self._number, self._length = 0, 0
        self._texts: list[Text] = []
        self._ended: list[bool] = []

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        """Return scores in which the drawn token is the only one possible."""
        rows = self._mechanism.shards
        if not self._texts:
            self._begin(len(scores), rows)
        self._count(input_ids)
        previous_G = None if self._number == 0 else input_ids[::rows, -1]
        public_GV = None if self._public is None else self._public.next(previous_G).to("cpu").double().numpy()
        forced = torch.full_like(scores, -torch.inf)
        for i, text in enumerate(self._texts):
            own = slice(i * rows, (i + 1) * rows)
            token = self._rule.end
            if not self._ended[i]:
                public_V = None if public_GV is None else public_GV[i]
                token = self._rule.draw(public_V, scores[own][self._present], number=self._number, text=text)
                self._ended[i] = token == self._rule.end
            forced[own, token] = 0.0
        self._number += 1
        return forced

    def _begin(self, batch: int, rows: int) -> None:
        num_texts = self._num_texts
        if batch != num_texts * rows:
            raise ConfigError(
                f"num_texts={num_texts} with shards={rows} needs {num_texts * rows} rows, generate brings {batch}: "
                f"give {rows} rows a text, and no num_return_sequences or num_beams, which repeat records"
            )
        self._texts = [Text(number=i, stream=self._key.stream(f"text/{i}")) for i in range(num_texts)]
        self._ended = [False] * num_texts

    def _count(self, input_ids: LongTensor) -> None:
        length = input_ids.shape[1]
        if (self._number and length != self._length + 1) or len(input_ids) != len(self._texts) * self._mechanism.shards:
            raise BudgetExhausted("processor: it has served its generate call; make a new one and add up the price")
        if self._number >= self._mechanism.tokens:
            raise BudgetExhausted(f"tokens={self._mechanism.tokens} are drawn; the price covers no more")
        self._length = length


def refuse_generation_config(config: GenerationConfig, *, tokens: int) -> None:
    """Refuse defaults that reshape private logits, which transformers would apply in silence.

    Raises:
        ConfigError: Naming the key.
    """
    for name, neutral in _NEUTRAL.items():
        value = getattr(config, name, None)
        if value is not None and value not in neutral:
            way_out = f"set it to {neutral[0]}" if neutral else "set it to None"
            raise ConfigError(f"generation_config.{name}={value} would reshape private logits; {way_out}")
    longest = config.max_new_tokens
    if longest is None or longest > tokens:
        raise ConfigError(f"generation_config.max_new_tokens={longest}: the price covers {tokens}; set it to that")


def _end(config: GenerationConfig) -> int:
    end = config.eos_token_id
    if not isinstance(end, int):
        raise ConfigError(f"generation_config.eos_token_id={end} must be one token id; set it")
    return end
