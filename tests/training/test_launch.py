import pytest

from ecanet.config import ClassificationSettings
from ecanet.errors import UserError
from ecanet.training.launch import launch


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc': unset it, or set a whole number from 1"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "٣"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "-1"}, "LOCAL_WORLD_SIZE is '-1'"),
        ({"RANK": "first"}, "RANK is 'first'"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999': .* from 1 to 65535"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'"),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS is 'two'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and MASTER_ADDR, .*, is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 of WORLD_SIZE 2: ranks count from 0"),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK is 1 of LOCAL_WORLD_SIZE 1"),
        ({"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "WORLD_SIZE is 3, not a multiple of"),
    ],
)
def test_variables_that_no_launcher_sets_are_refused(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        launch(ClassificationSettings(device="cpu"))
