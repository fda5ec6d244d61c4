"""Curves of a training run, from its history."""

from locray.datasets.records import Dataset, Record
from locray.report.training import curves, evenly_spread


def test_losses_share_a_chart_and_so_do_metrics() -> None:
    charts = curves(
        [
            {
                "epoch": 1,
                "loss": 2.0,
                "class_accuracy": 0.1,
                "map_50": 0.2,
                "learning_rate": 1e-3,
                "images_per_s": 90.0,
            },
            {
                "epoch": 2,
                "loss": 1.0,
                "class_accuracy": 0.4,
                "map_50": 0.3,
                "learning_rate": 5e-4,
                "images_per_s": 95.0,
            },
            {"epoch": 3, "loss": 1.5, "class_accuracy": 0.3, "learning_rate": 1e-5, "images_per_s": 95.0, "norm": 7.0},
        ],
        best_epoch=2,
    )
    assert [chart.title for chart in charts] == [
        "Loss",
        "On the validation split",
        "Learning rate",
        "Images per second",
        "norm",
    ]
    assert [line.name for line in charts[1].legend] == ["class accuracy", "map 50"]
    assert all("best epoch: 2" in chart.svg for chart in charts)
    assert "loss at 3: 1.5" in charts[0].svg
    assert "map 50 at 3" not in charts[1].svg


def test_a_single_epoch_and_none() -> None:
    (chart,) = curves([{"epoch": 1, "loss": 2.0}], best_epoch=1)
    assert "loss at 1: 2" in chart.svg
    assert curves([], best_epoch=0) == []


def test_a_large_split_is_sampled_evenly() -> None:
    records = tuple(Record(str(number), (), None, None) for number in range(10))
    dataset = Dataset("d", "val", records, (), {})
    assert evenly_spread(dataset, 10) is dataset
    assert [record.image_uri for record in evenly_spread(dataset, 4).records] == ["0", "2", "5", "7"]


def test_settings_of_a_run_are_shown_if_they_change() -> None:
    epochs = [{"epoch": number, "loss": 1.0, "workers": 1.0, "precision_bits": 32.0} for number in (1, 2)]
    assert [chart.title for chart in curves(epochs, best_epoch=1)] == ["Loss"]
    epochs[0]["workers"] = 2.0
    assert [chart.title for chart in curves(epochs, best_epoch=1)] == ["Loss", "workers"]
