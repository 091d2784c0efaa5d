"""What a run says of the time left."""

from gems_jax.training.monitoring import progress


def test_the_time_left_does_not_count_compilation(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = progress.Progress(total=101, first=0, active=True)
    now[0] = 60.0  # the first step compiles
    shown.update()
    shown.line(1, {})
    assert "? left" in capsys.readouterr().out
    now[0] = 64.0
    shown.update()
    shown.update()
    shown.line(3, {})
    assert "3:16 left" in capsys.readouterr().out  # 98 steps of 2 seconds
