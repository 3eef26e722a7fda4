"""Settings are strict: each wrong one names field, value and what was expected."""

from pathlib import Path
from typing import Any

import pytest
from picture_folders import settings
from pydantic import ValidationError

from loramux_train import config
from loramux_train.data_settings import DataSettings, FolderSettings, PriorSettings
from loramux_train.errors import BadSetting

HERE = Path("x")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"flip": "False"}, "data.flip is 'False': Input should be a valid boolean"),
        ({"flip": 0}, "data.flip is 0: Input should be a valid boolean"),
        ({"resolution": "512"}, "data.resolution is '512': Input should be a valid integer"),
        ({"batch_size": 0}, "data.batch_size is 0: Input should be greater than or equal to 1"),
        ({"flips": True}, "data.flips is no setting; did you mean data.flip?"),
        ({"masks": "file"}, "data.masks is 'file': Input should be 'none', 'files' or 'alpha'"),
        ({"resolution": 100}, "data: resolution is 100, expected a multiple of bucket_step, 8"),
        ({"bucket_min": 80}, "data: resolution is 64, expected bucket_min to bucket_max, 80 to 128"),
        ({"bucket_min": 256, "bucket_max": 128}, "data: bucket_min is 256, more than bucket_max, 128"),
        ({"prior": {"folder": "x"}}, "data.prior.prompt is missing"),
        ({"folders": []}, "data.folders is []: Tuple should have at least 1 item after validation, not 0"),
        ({"ground": [0, 0, 256]}, "data.ground.2 is 256: Input should be less than or equal to 255"),
        ({"caption_dropout": 1.5}, "data.caption_dropout is 1.5: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_named_simpletuner_1139(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSetting) as caught:
        config.parse({"data": {"folders": ["x"], "resolution": 64, **wrong}})
    assert str(caught.value) == says


def test_what_a_configuration_file_holds_is_taken() -> None:
    chosen = DataSettings.model_validate(
        {
            "folders": ["photos", {"path": "more", "repeats": 3}],
            "resolution": 512,
            "caption_extensions": ["TXT", ".caption"],
            "prior": {"folder": "class", "prompt": "a cat", "weight": 1},
            "ground": [0, 0, 0],
        }
    )
    assert [folder.path for folder in chosen.folders] == [Path("photos"), Path("more")]
    assert chosen.caption_extensions == (".txt", ".caption")
    assert chosen.step == 64
    assert chosen.edges == (256, 1024)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        settings(HERE).seed = 1


def test_every_setting_says_what_it_is() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in (DataSettings, FolderSettings, PriorSettings)
        for name, field in model.model_fields.items()
        if not (field.description or "").endswith(".")
    ]
    assert silent == []


@pytest.mark.parametrize(("resolution", "step"), [(64, 8), (256, 32), (320, 40), (520, 40), (512, 64), (1024, 64)])
def test_the_step_divides_the_resolution(resolution: int, step: int) -> None:
    assert settings(HERE, resolution=resolution).step == step
