"""Let a checkpoint write text, as a configuration of `adaptive-span generate` asks."""

import sys
import time
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from adaptive_span.checkpoint import loading
from adaptive_span.checkpoint.matching import vocabulary_for
from adaptive_span.checkpoint.paths import best_path
from adaptive_span.checkpoint.stored_model import model_of
from adaptive_span.config import plugins
from adaptive_span.config.generate_schema import GenerateConfig
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.data.text_stream import text_stream
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.distributed import process_group
from adaptive_span.errors import UserError
from adaptive_span.hardware import step_graph
from adaptive_span.model.decoder import Decoder
from adaptive_span.model.generation import continued
from adaptive_span.model.sampling import Sampling
from adaptive_span.terminal.plain_text import printable
from adaptive_span.terminal.program import sigterm_as_exit


def generate(asked: GenerateConfig) -> None:
    """Write text, and print at the end how fast that was and what the cache held.

    Args:
        asked: A checked configuration.

    Raises:
        UserError: The checkpoint or the prompt cannot be used.
    """
    plugins.load(asked.plugins)
    file = Path(asked.checkpoint or best_path(Path(asked.run or "")))
    with process_group(asked.hardware) as process, sigterm_as_exit():
        state = loading.load(file)
        prompt = _prompt(asked)
        model = model_of(state, file, process.device)
        by_frequency = model.config.reads_by_frequency
        vocabulary = vocabulary_for(state, str(file), asked.data, by_frequency, asked.numbering)
        ids = vocabulary.encode(prompt, "the prompt")
        if not ids:
            raise UserError("the prompt is empty; give at least one symbol, such as a line end")
        tokens = torch.tensor([ids] * asked.samples, device=process.device)  # (B, M)
        graphs, _ = step_graph.choose(asked.hardware.graphs, process.device)
        dtype = torch.bfloat16 if asked.hardware.precision == "bf16" else None
        decoder = Decoder(model, asked.samples, graphs=graphs, dtype=dtype)
        sampling = Sampling(asked.temperature, asked.top_k, asked.top_p)
        writer = Writer(vocabulary, prompt, asked.samples, sys.stdout)
        started = time.perf_counter()
        for drawn in continued(decoder, tokens, asked.length, sampling, asked.seed):
            writer.add(drawn)
        writer.end()
        _print_cost(decoder, model.config, asked, time.perf_counter() - started)


class Writer:
    """Write texts as they grow: one at once, several of them one behind another at the end."""

    def __init__(self, vocabulary: Vocabulary, prompt: bytes, samples: int, out: TextIO):
        self.streams, self.out = [text_stream(vocabulary) for _ in range(samples)], out
        self.texts = [stream.begin(prompt) for stream in self.streams]
        if samples == 1:
            self._write(self.texts[0])

    def add(self, drawn: Tensor) -> None:
        """Take the next token of each text, (B,)."""
        self._grow([stream.add(number) for stream, number in zip(self.streams, drawn.tolist(), strict=True)])

    def end(self) -> None:
        """Write what is left."""
        self._grow([stream.end() for stream in self.streams])
        if len(self.texts) == 1:
            self._write("\n")
            return
        for number, text in enumerate(self.texts, 1):
            self._write(f"=== {number} of {len(self.texts)}\n{text}\n")

    def _grow(self, pieces: list[str]) -> None:
        if len(pieces) == 1:
            self._write(pieces[0])
        else:
            self.texts = [text + piece for text, piece in zip(self.texts, pieces, strict=True)]

    def _write(self, text: str) -> None:
        """Write text; on a terminal without what would steer it."""
        if self.out.isatty():
            text = printable(text)
        self.out.write(text)
        self.out.flush()


def _prompt(asked: GenerateConfig) -> bytes:
    if asked.prompt is not None:
        return asked.prompt.encode()
    if asked.prompt_file is not None:
        try:
            return Path(asked.prompt_file).read_bytes()
        except OSError as error:
            raise UserError(f"prompt_file={asked.prompt_file} cannot be read ({error.strerror})") from None
    return b"\n" if sys.stdin.isatty() else sys.stdin.buffer.read()


def _print_cost(decoder: Decoder, model: ModelConfig, asked: GenerateConfig, seconds: float) -> None:
    width = 2 if asked.hardware.precision == "bf16" else 4  # bytes
    full = 2 * model.num_layers * model.max_span * model.hidden_size * asked.samples * width
    held, tokens = decoder.cache_bytes, asked.length * asked.samples
    print(
        f"{tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s; the cache held {held / 1e6:.1f} MB, "
        f"{100 * held / full:.1f} % of the {full / 1e6:.1f} MB of every head at {model.max_span:,} tokens",
        file=sys.stderr,
    )
