"""A whole sample under an output mechanism: source (a), the weights of a run.

Here: the model, its public twin, the key, and the loop over waves. Elsewhere: sampling without noise (sampling.py), the
draw (output_decoding.py).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.generation.checkpoint_source import draw_texts
from safesynthdp.generation.decoding import DrawnRow, Row
from safesynthdp.generation.files import load_parts
from safesynthdp.generation.output_config import refuse_private_truncation
from safesynthdp.generation.output_decoding import Rule
from safesynthdp.generation.sampling import Basket, ready_model
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.generation.texts import SampledText, TextDecoder
from safesynthdp.models import LoadedModel, load_run_model
from safesynthdp.privacy.output_draws import OutputKey
from safesynthdp.privacy.storage import write_json
from safesynthdp.runs import RunDirectory

if TYPE_CHECKING:
    from torch import nn

KEY = "output_key.json"


@dataclass(frozen=True, kw_only=True)
class NoisySampler:
    """Stands where ``sample_texts`` stands."""

    rule: Rule
    key: OutputKey
    public: "nn.Module | None"

    @classmethod
    def of(cls, config: SampleConfig, source: RunDirectory, run: RunDirectory) -> "NoisySampler":
        """Return the sampler of a config; the key is on disk before it is used."""
        if config.output is None or config.max_new_tokens is None:
            raise ConfigError("output is missing; give it")
        run.say(
            "warning: output.single: one model saw every record; the bound of this noise is close to none, see "
            "docs/guarantees.md"
        )
        if not config.output.weights_withheld:
            run.say("output.weights_withheld=false: the text costs what the weights cost, the noise adds no claim")
        public = load_run_model(source, untuned=True) if config.output.needs_public_model else None
        decoding = refuse_private_truncation(
            config.output, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
        )
        rule = Rule(
            mechanism=config.output_mechanism(),
            end=0,  # that of the loaded model, as soon as there is one
            tokens=config.max_new_tokens,
            top_k=config.output.public_top_k,
            recentre=config.output.is_recentred,
            decoding=decoding,
        )
        model = (
            None
            if public is None
            else ready_model(public, dtype=config.dtype, attn_implementation=config.attn_implementation)
        )
        return cls(rule=rule, key=output_key(run, unsafe_seed=config.unsafe_seed), public=model)

    def __call__(
        self,
        model: "nn.Module",
        loaded: LoadedModel,
        rows: Sequence[Row],
        config: SampleConfig,
        *,
        advance: Callable[[int], None],
        keep: Callable[[Sequence[SampledText]], None],
    ) -> dict[int, SampledText]:
        """Draw every row and return the texts by number."""
        decoder, texts, basket = TextDecoder(loaded.tokenizer), dict[int, SampledText](), Basket(keep)

        def on_step(drawn: list[DrawnRow], _num_drawn: int) -> None:
            finished = [decoder(row) for row in drawn]
            texts.update({text.number: text for text in finished})
            basket.add(finished)
            advance(len(finished))

        rule = replace(self.rule, end=loaded.eos_token_id)
        try:
            draw_texts(model, self.public, rows, rule=rule, key=self.key, batch_size=config.batch_size, on_step=on_step)
        finally:
            basket.empty()
        return texts


def output_key(run: RunDirectory, *, unsafe_seed: int | None) -> OutputKey:
    """Return the key of a run's output noise: from its state if it goes on, else a new one, on disk before its use."""
    if unsafe_seed is not None:
        return OutputKey.from_unsafe_seed(unsafe_seed)
    path = run.state / KEY
    if path.is_file():
        try:
            secret = bytes.fromhex(json.loads(path.read_text(encoding="utf-8"))["secret"])
        except (ValueError, KeyError, TypeError):
            raise LedgerMismatch(f"{path} cannot be read; start a new output_dir") from None
        return OutputKey(secret=secret, seeded=False)
    if load_parts(run):
        raise LedgerMismatch(
            f"{path} is gone and texts drawn with it are here: records would be sent to other batches and pay twice; "
            "restore it, or start a new output_dir"
        )
    key = OutputKey.fresh()
    write_json(path, {"secret": key.secret.hex()}, private=True)
    return key


def drop_key(run: RunDirectory) -> None:
    """Forget the noise once every text is on disk."""
    (run.state / KEY).unlink(missing_ok=True)
