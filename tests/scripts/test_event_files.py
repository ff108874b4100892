"""TensorBoard's event files of a run that goes on."""

from itertools import count
from types import SimpleNamespace

from common.event_files import EventFiles
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer


def test_what_came_after_the_checkpoint_is_hidden_within_one_second_too(tmp_path, monkeypatch):
    """The files' names differ by their counts alone then, and 10 sorts before 9."""
    counts = count(9)
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=counts.__next__))
    for resumed_at, steps in ((None, (1, 2, 3)), (1, (4,))):
        files = EventFiles(tmp_path, resumed_at)
        for step in steps:
            files.write({"return": float(step)}, {"return": ()}, step)
        files.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("return")] == [1, 4]
