"""What a training shows on a terminal, frame by frame, of 80 and of 120 columns."""

import fcntl
import json
import os
import pty
import re
import struct
import termios

import pyte
import pytest

from adaptive_span.reporting.progress import span_bars
from tests.conftest import ENVIRONMENT

ROWS, STEPS = 40, 90
# COLUMNS, which pytest-xdist sets, would count for more than the size of the terminal.
TERMINAL = {name: value for name, value in ENVIRONMENT.items() if name not in ("COLUMNS", "LINES")}
TERMINAL["TERM"] = "xterm-256color"
FRAME = b"\r\x1b[2K"  # each begins by going back to the start of its last line


def printed(words, directory, columns):
    """Run a command on a terminal of so many columns, and return all bytes that it wrote there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(directory)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        os.execvpe(words[0], words, TERMINAL)
    output = b""
    try:
        while block := os.read(terminal, 1 << 16):
            output += block
    except OSError:  # the command has ended
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output
    return output


def test_a_bar_is_a_layers_longest_head_on_a_logarithmic_scale():
    assert span_bars([[32, 32], [32, 64], [512, 32], [40, 4096], [20, 30]], shortest=32, longest=4096) == "▁▂▅█▁"
    assert span_bars([[16]], shortest=32, longest=16) == "▁"


@pytest.mark.parametrize("columns", [80, 120])
def test_every_frame_shows_step_total_loss_and_time_left(columns, command, tmp_path):
    settings = [f"train.steps={STEPS}", "log.every=10", "validation.every=30", "run.dir=run", "optimizer.lr=0.3"]
    output = printed(command(*settings), tmp_path, columns)
    screen = pyte.Screen(columns, ROWS)
    stream = pyte.ByteStream(screen)
    header, *frames = output.split(FRAME)
    stream.feed(header)
    names = re.findall(r"^(\w+)  ", header.decode(), re.MULTILINE)
    assert names == "model parameters data device precision attention graphs run tracker".split()
    steps = []
    for frame in frames:
        assert frame.count(b"\x1b[1A") <= 2  # three lines are drawn again, and no more
        stream.feed(FRAME + frame)
        shown = [line.rstrip() for line in screen.display]
        [bar] = [number for number, line in enumerate(shown) if re.match(rf"step [\d,]+/{STEPS} ", line)]
        step = int(shown[bar].removeprefix("step ").partition("/")[0])
        steps.append(step)
        assert len(shown[bar]) == columns  # the bar fills it
        if step < 10:
            assert re.match(rf"step {step}/{STEPS} · (–|\d:\d\d:\d\d) left ", shown[bar])
            continue
        assert re.match(rf"step {step}/{STEPS} · train bpc \d+\.\d{{3}} · \d:\d\d:\d\d left ", shown[bar])
        assert re.fullmatch(r"(best valid bpc [\d.]+ · )?[\d,]+ tokens/s · [\d,]+ ms/step · [\d,]+ MiB", shown[bar + 1])
        assert re.fullmatch(r"span by layer [▁▂▃▄▅▆▇█]{2} mean \d+ max \d+ of 96", shown[bar + 2])
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
    assert not any(code in output for code in (b"\x1b[2J", b"\x1b[?1049h"))  # the whole screen
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validated = {line["step"]: line["valid/bpc"] for line in lines if "valid/bpc" in line}
    best = min(validated.values())
    history = re.findall(rb"step (\d+) \xc2\xb7 valid bpc ([\d.]+)( \(new best\))? \xc2\xb7 train", output)
    assert [int(step) for step, _, _ in history] == [30, 60, 90]
    for number, (step, value, mark) in enumerate(history):
        assert value.decode() == f"{validated[int(step)]:.3f}"
        assert bool(mark) == all(float(earlier) > float(value) for _, earlier, _ in history[:number])
    assert f"best valid bpc {best:.3f}".encode() in output
