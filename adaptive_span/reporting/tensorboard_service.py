"""Keep the curves of a run for TensorBoard, in the run's directory: for clusters without internet."""

from pathlib import Path
from typing import Any

from adaptive_span.config.identity import identity
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.reporting.span_image import span_image
from adaptive_span.reporting.tracked_names import HEAT_MAP, final_numbers, head_curves, is_validation
from adaptive_span.reporting.tracking import Metrics, Service, Spans, last_step_logged, run_name

try:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams
except ModuleNotFoundError as missing:
    raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[tensorboard]' brings it") from None


class TensorboardService(Service):
    """Event files in `tensorboard/`, one for each time that the training is begun or resumed."""

    def __init__(self, directory: Path, config: Config, run_id: str | None):
        self.config, self.name = config, run_name(config, directory)
        self.place = str((directory / "tensorboard").absolute())
        self.step = last_step_logged(directory)
        # What a killed run wrote after its last checkpoint comes again, so readers are told to drop it.
        self.writer = SummaryWriter(self.place, purge_step=self.step + 1)
        layers = {
            f"layer {layer}": ["Multiline", [f"span/layer_{layer:02d}/.*"]] for layer in range(config.model.num_layers)
        }
        self.writer.add_custom_scalars({"spans": layers})

    def log(self, step: int, metrics: Metrics, spans: Spans) -> None:
        self.step = step
        for key, value in {**metrics, **head_curves(spans)}.items():
            self.writer.add_scalar(key, value, step)
        if is_validation(metrics):
            image = span_image(spans, self.config.model, self.name, step)
            self.writer.add_image(HEAT_MAP, image, step, dataformats="HWC")
        self.writer.flush()  # else a killed run would lack up to two minutes that a resumed one does not write again

    def result(self, evaluation: dict[str, Any]) -> None:
        numbers = final_numbers(evaluation)
        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in identity(self.config.as_dict(), type(self.config)).items()
            if value is not None
        }
        # `add_hparams` would write a second run beside this one.
        for summary in hparams(settings, numbers):
            self.writer._get_file_writer().add_summary(summary)
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, self.step)

    def finish(self, exit_code: int) -> None:
        self.writer.close()
