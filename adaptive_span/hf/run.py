"""Fit a model as a configuration of `adaptive-span fit` asks: measure, fit, measure again, write what was found."""

import platform
from dataclasses import asdict, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from adaptive_span.checkpoint import files
from adaptive_span.config.fit_schema import FitConfig
from adaptive_span.data import source
from adaptive_span.distributed import process_group
from adaptive_span.errors import UserError
from adaptive_span.hardware import machine
from adaptive_span.hardware import precision as precisions
from adaptive_span.hf import baselines, heads, losses, models, needles, report, text
from adaptive_span.hf.fingerprint import fingerprint
from adaptive_span.hf.fitting import Asked, Fit
from adaptive_span.hf.heads import LayerHeads
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.progress import FitProgress
from adaptive_span.hf.spans import FittedSpans, LayerSpans, load
from adaptive_span.reporting.progress import clock
from adaptive_span.reporting.run_directory import claimed
from adaptive_span.storage import tensor_file
from adaptive_span.storage.writing import explain_disk_errors
from adaptive_span.terminal.printing import print_fields, print_line, print_places, print_table
from adaptive_span.terminal.program import sigterm_as_exit
from adaptive_span.version import __version__

SPANS, STATE = "spans.json", "fit.pt"
SAVE_EVERY = 10  # steps
TRAIN_IDS = 4_000_000  # the most tokens of train that texts are drawn from
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def fit(asked: FitConfig) -> None:
    """Fit a model's spans, or resume, and write spans.json, the heat map and what it cost into the folder `out`.

    Args:
        asked: A checked configuration.

    Raises:
        UserError: The model, the text or the folder cannot be used.
    """
    folder = Path(asked.out or default_folder(asked))
    with process_group(asked.hardware) as process, sigterm_as_exit():
        if (folder / SPANS).exists():
            _show(_same(load(folder / SPANS), asked, folder), folder)
            return
        paths = source.files(asked.data)  # downloaded before the model is
        precision, reason = choose_precision(asked.hardware.precision, process.device)
        loaded, layers, spans = _load(asked, DTYPES[precision], process.device)
        to_fit = [layer for layer in layers if layer.window is None]
        print_line(
            f"{loaded.name} · {loaded.model.num_parameters() / 1e6:,.0f} million weights · {len(layers)} layers, "
            f"{len(to_fit)} to fit · {sum(layer.heads for layer in to_fit)} spans · "
            f"{process.device.type}, {precision} ({reason})"
        )
        train, held_out = _texts(asked, loaded, paths)
        generator = torch.Generator().manual_seed(asked.seed)
        texts = text.calibration(loaded.tokenizer, train, asked.context, generator, asked.data.passkeys)
        settings = Asked(asked.steps, asked.rate, asked.budget, asked.penalty)
        fit = Fit(loaded.model, to_fit, spans, texts, generator, settings)
        meter = Meter(loaded, held_out, asked)
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder):
            state = _stored(folder / STATE, asked)
            before = state["before"] if state else meter.measure("before")
            if state:
                fit.load_state_dict(state["fit"])
                print_line(f"resuming at step {fit.step}")
            _advance(fit, asked, before, folder)
            moved = fit.meet_budget()
            if abs(moved) > asked.ramp:
                print_line(
                    f"warning: {fit.step} steps were too few to reach budget={asked.budget:g}; all spans were moved by "
                    f"{moved:+.0f} tokens to meet it, so that they differ less than they should; give more steps"
                )
            fitted = _fitted(asked, loaded, layers, spans)
            set_spans(spans, fitted)
            found = _measured(meter, spans, fitted, before)
            found["longest_text"] = models.longest_text(loaded.model)
            record = found | _circumstances(asked, fit, precision)
            fitted = replace(fitted, fit=record)
            fitted.save(folder / SPANS)
            report.save_heat_map(fitted, folder)
            (folder / STATE).unlink(missing_ok=True)
        _show(fitted, folder)


class Meter:
    """Measure a model on held-out text, as it is just then."""

    def __init__(self, loaded: models.Loaded, ids: Tensor, asked: FitConfig):
        self.loaded, self.ids, self.context = loaded, ids, asked.context
        self.count = max(1, asked.held_out // asked.context)
        self.first = text.start(loaded.tokenizer)

    def loss(self) -> dict[str, Any]:
        """Return the loss. See `losses.measure`."""
        windows = islice(text.windows(self.ids, self.context, self.first), self.count)
        return losses.measure(self.loaded.model, windows)

    def measure(self, when: str) -> dict[str, Any]:
        """Return the loss and what the needle test finds."""
        print_line(f"measuring the model {when}: {self.count} texts of {self.context:,} tokens, and needles")
        found = needles.measure(self.loaded.model, self.loaded.tokenizer, self.ids, self.context)
        return {"loss": self.loss(), "needles": found}


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """Return fp32 or bf16, and why: bf16 where the processor or the GPU multiplies in it."""
    if asked == "tf32":
        raise UserError("hardware.precision=tf32, but spans are fitted in fp32 or bf16; take one of them")
    known = machine.instructions()
    if asked == "auto" and device.type == "cpu" and known is not None and not known.isdisjoint(precisions.NATIVE):
        return "bf16", "this processor multiplies in it"
    return precisions.choose(asked, None, device)


def default_folder(asked: FitConfig) -> str:
    """Return the folder of a fit whose user has named none."""
    name = Path(asked.model.name.rstrip("/")).name
    size = f"{asked.budget:g}" if asked.penalty is None else f"penalty-{asked.penalty:g}"
    return f"fits/{name}-{asked.context}-{size}"


def set_spans(spans: list[HeadSpans], fitted: FittedSpans) -> None:
    """Let every layer that is no sliding one see as far as it was fitted to."""
    layers = [layer for layer in fitted.layers if layer.window is None]
    for each, layer in zip(spans, layers, strict=True):
        each.set_(layer.spans)


def _load(
    asked: FitConfig, dtype: torch.dtype, device: torch.device
) -> tuple[models.Loaded, list[LayerHeads], list[HeadSpans]]:
    """Return the model, its layers, and the spans that those of them have now that are no sliding ones."""
    loaded = models.load(asked.model.name, asked.model.revision, dtype, device)
    models.check_context(loaded.model, asked.model.name, asked.context)
    layers = heads.find(loaded.model)
    spans = heads.attach(
        loaded.model, layers, lambda layer: HeadSpans(layer.heads, asked.context, asked.ramp, asked.sinks)
    )
    if not spans:
        raise UserError(
            f"every layer of model={asked.model.name} sees no more than a sliding window of {layers[0].window:,} "
            f"tokens already; there is nothing to fit"
        )
    return loaded, layers, spans


def _texts(asked: FitConfig, loaded: models.Loaded, paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Return the token ids of train and of valid, as many as are needed."""
    ids = []
    needed = {"train": TRAIN_IDS, "valid": max(asked.held_out, 64 * asked.context)}
    for split, name, stream in source.splits(asked.data, paths):
        if split in needed:
            most = needed[split]
            ids.append(text.encode(loaded.tokenizer, stream.read(8 * most), name, split, most))
    return ids[0], ids[1]


def _advance(fit: Fit, asked: FitConfig, before: dict[str, Any], folder: Path) -> None:
    """Make the steps that are left, and save now and then."""
    with FitProgress(fit.step, asked.steps) as progress:
        while not fit.is_over:
            progress.show(fit.step + 1, fit.advance())
            if fit.step % SAVE_EVERY == 0:
                state = {"asked": _identity(asked), "before": before, "fit": fit.state_dict()}
                files.save(state, folder / STATE)


def _fitted(asked: FitConfig, loaded: models.Loaded, layers: list[LayerHeads], spans: list[HeadSpans]) -> FittedSpans:
    """Return the spans as they are now, to the tenth of a token."""
    learned = iter(spans)
    found = []
    for layer in layers:
        tokens = [float(layer.window)] * layer.heads if layer.window else next(learned).span.effective().tolist()
        rounded = [round(token, 1) for token in tokens]
        found.append(LayerSpans(layer.index, layer.kv_heads, layer.head_size, layer.window, rounded))
    return FittedSpans(
        loaded.name, loaded.revision, type(loaded.model).__name__, fingerprint(loaded.model), asked.context,
        asked.ramp, asked.sinks, found,
    )  # fmt: skip


def _measured(meter: Meter, spans: list[HeadSpans], fitted: FittedSpans, before: dict[str, Any]) -> dict[str, Any]:
    """Return the losses and needles of full attention, the fitted spans, their windows, and both baselines."""
    after = meter.measure("with its spans")
    for each in spans:
        each.harden_()
    after["windows_loss"] = meter.loss()
    compared = {}
    for name, baseline in (
        ("one_window", baselines.one_window(fitted)),
        ("window_per_layer", baselines.window_per_layer(fitted)),
    ):
        print_line(f"measuring {name.replace('_', ' ')} of the same cache")
        set_spans(spans, baseline)
        for each in spans:
            each.harden_()
        compared[name] = {"share": baseline.share(), "loss": meter.loss()}
    set_spans(spans, fitted)
    return {"share": fitted.share(), "before": before, "after": after, "baselines": compared}


def _circumstances(asked: FitConfig, fit: Fit, precision: str) -> dict[str, Any]:
    return {
        "asked": _identity(asked),
        "steps": fit.step,
        "seconds": round(fit.seconds, 1),
        "penalty": fit.penalty,
        "precision": precision,
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {
            "adaptive-span": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _identity(asked: FitConfig) -> dict[str, Any]:
    """Return what makes two fits the same."""
    values = asdict(asked)
    kept = ("model", "context", "steps", "budget", "penalty", "sinks", "ramp", "rate", "held_out", "seed")
    data = {key: values["data"][key] for key in ("name", "file", "path", "split", "passkeys")}
    return {key: values[key] for key in kept} | {"data": data, "precision": asked.hardware.precision}


def _stored(path: Path, asked: FitConfig) -> dict[str, Any] | None:
    """Return the state of a fit that was cut off, or None where none was begun."""
    if not path.exists():
        return None
    state = tensor_file.read(path)
    if not isinstance(state, dict) or not {"asked", "before", "fit"} <= state.keys() or "seconds" not in state["fit"]:
        raise UserError(f"{path} is no state of a fit by this version; delete it to start afresh")
    _check_identity(state["asked"], asked, path.parent)
    return state


def _same(fitted: FittedSpans, asked: FitConfig, folder: Path) -> FittedSpans:
    _check_identity(fitted.fit.get("asked", {}), asked, folder)
    return fitted


def _check_identity(stored: dict[str, Any], asked: FitConfig, folder: Path) -> None:
    for key, value in _identity(asked).items():
        if stored.get(key) != value:
            raise UserError(
                f"{folder} holds a fit with {key}={stored.get(key)}, and this one has {key}={value}; give another out"
            )


def _show(fitted: FittedSpans, folder: Path) -> None:
    """Print what was found, and where it is."""
    found = fitted.fit
    if "seconds" in found:  # which earlier versions did not write
        print_line(f"{found['steps']} steps in {clock(found['seconds'])}")
    print_table(report.loss_table(found["before"]["loss"], found["after"]["loss"]))
    compared = {"its spans as windows": found["after"]["windows_loss"]}
    compared |= {report.BASELINES[name]: baseline["loss"] for name, baseline in found["baselines"].items()}
    print_fields({name: f"{loss['nats_per_token']:.3f} nats per token" for name, loss in compared.items()})
    longest = found.get("longest_text") or fitted.context
    print_table(report.cache_table(fitted, longest))
    print_line(needles.sentence(found["before"]["needles"], found["after"]["needles"]))
    print_places({"spans": folder / SPANS, "picture": folder / "spans.png"})
