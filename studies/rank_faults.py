# SPDX-License-Identifier: Apache-2.0
"""Does `vorta-trt generate --gpus` end cleanly whatever ends one of its processes? On the CPU, with a tiny model.

    python studies/rank_faults.py --work /tmp/faults --times 3

Every case runs the command on two processes, sends a signal to one of its processes at a random moment, and then
measures the seconds until none of its processes is left. It also looks for zombies, half-made files and the command's
messages. A run without a fault shows how long the command usually takes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from prompt_to_mp4 import RESULTS

from vorta_trt.benchmarks.harness import write_result

MARK = "VORTA_TRT_FAULT_STUDY"  # in the environment of every process of a case
PATIENCE = 120.0  # seconds
TIMEOUT = 10.0  # of exchanges, in the case of a rank that stands still
TINY = {"layers": 2, "heads": 2, "head_dim": 32, "ffn_dim": 64}
COMMAND, RANKS = "the command", ("rank 0", "rank 1")
# What is done to whom, and the exit code that must follow.
FAULTS: tuple[tuple[str, signal.Signals, tuple[str, ...], int], ...] = (
    ("killed", signal.SIGKILL, RANKS, 1),
    ("stands still", signal.SIGSTOP, RANKS, 1),
    ("Ctrl-C", signal.SIGINT, (COMMAND,), 130),
    ("SIGTERM", signal.SIGTERM, (COMMAND,), 143),
    ("killed", signal.SIGKILL, (COMMAND,), -9),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for a tiny model and the videos")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the figures [benchmarks/results]")
    parser.add_argument("--times", type=int, default=3, help="how often each case is run [3]")
    parser.add_argument("--steps", type=int, default=40, help="of a video [40]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background lets children ignore it
    checkpoint = make_tiny(arguments.work / "tiny")
    whole = Case(arguments.work, checkpoint, arguments.steps)
    whole.wait()
    life = whole.seconds
    print(f"without a fault: {life:.1f} s, exit code {whole.process.returncode}", flush=True)
    assert whole.process.returncode == 0, whole.said()
    moments, rows = random.Random(arguments.seed), []
    for what, number, victims, code in FAULTS:
        for victim in victims:
            for _ in range(arguments.times):
                moment, row = moments.uniform(0.2, 0.9) * life, {"hit": False}
                while not row["hit"]:  # again where it had ended before, as on a machine with other work it may
                    case = Case(arguments.work, checkpoint, arguments.steps)
                    row = case.hit(what, number, victim, moment, code)
                    moment *= 0.7
                rows.append(row)
                print(row, flush=True)
    figures = {"seconds_without_a_fault": round(life, 1), "exchange_timeout": TIMEOUT, "cases": rows}
    print(f"written: {write_result(arguments.results, 'rank-faults', figures)}")
    if bad := [row for row in rows if not row["as_it_should"]]:
        raise SystemExit(f"{len(bad)} of {len(rows)} ended otherwise than they should")


def make_tiny(folder: Path) -> Path:
    """A tiny pipeline with two heads."""
    from vorta_trt.model.random_checkpoint import make_checkpoint
    from vorta_trt.model.random_pipeline import complete_pipeline

    if not (folder / "model_index.json").is_file():
        complete_pipeline(make_checkpoint(folder, "wan", **TINY))
    return folder


class Case:
    """One run of the command."""

    def __init__(self, work: Path, checkpoint: Path, steps: int) -> None:
        self.mark, self.folder = uuid.uuid4().hex, work / "videos"
        self.folder.mkdir(exist_ok=True)
        for file in self.folder.iterdir():
            file.unlink()
        self._log = work / "said.txt"
        command = [sys.executable, "-m", "vorta_trt.cli", "generate", str(checkpoint), "--gpus", "2"]
        command += ["--size", "9x64x96", "--steps", str(steps), "--guidance-scale", "1", "--prompt", "a red wall"]
        command += ["--gpu-timeout", str(TIMEOUT), "-o", str(self.folder / "wall.mp4")]
        self.began = time.monotonic()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, MARK: self.mark})

    @property
    def seconds(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self.began

    def wait(self) -> None:
        """Waits until the command has ended."""
        self.process.wait(PATIENCE)

    def said(self) -> str:
        """What the command wrote to its terminal."""
        return self._log.read_text(errors="replace")

    def processes(self) -> dict[str, int]:
        """Ids of the command's living processes, by name: "the command", "rank 0", "rank 1"."""
        found: dict[str, int] = {}
        for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda each: int(each.name)):
            try:
                ours = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if ours and b"resource_tracker" not in command:
                name = f"rank {len(found) - (COMMAND in found)}" if b"spawn_main" in command else COMMAND
                found[name] = int(folder.name)
        return found

    def hit(self, what: str, number: signal.Signals, victim: str, moment: float, code: int) -> dict[str, Any]:
        """Sends a signal to a process at a moment, and records what follows."""
        while (victim not in (now := self.processes()) or self.seconds < moment) and self.process.poll() is None:
            time.sleep(0.05)
        at, hit = self.seconds, victim in now and self.process.poll() is None
        if hit:
            os.kill(now[victim], number)
        begun = time.monotonic()
        returned: int | None = None
        while time.monotonic() - begun < PATIENCE:
            returned = self.process.poll()  # which reaps the command, and nothing else
            if returned is not None and not self.processes():
                break
            time.sleep(0.02)
        seconds, left = time.monotonic() - begun, self.processes()
        for process in left.values():
            os.kill(process, signal.SIGKILL)
        files = sorted(file.name for file in self.folder.iterdir())
        # SIGKILL of rank 0 or the command may leave a hidden folder, which the next writer of the name clears away.
        visible = [file for file in files if not file.startswith(".")]
        errors = [line for line in self.said().splitlines() if line.startswith("error: ")]
        return {
            "what": f"{victim} {what}" if number in (signal.SIGKILL, signal.SIGSTOP) else what,
            "at": round(at, 1),
            "seconds_until_all_ended": round(seconds, 2),
            "exit_code": returned,
            "left": sorted(left),
            "files": files,
            "error": errors[0][:200] if errors else None,
            "as_it_should": not left and returned == code and not visible,
            "hit": hit,
        }


if __name__ == "__main__":
    main()
