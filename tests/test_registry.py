import pytest

from gpumlp.registry import build, call_with, look_up, nearest


class Animal:
    def __init__(self, legs: int = 4, name_of: str = "") -> None:
        self.legs = legs


class Snake(Animal):
    def __init__(self, length: float) -> None:
        self.length = length


TABLE = {"animal": Animal, "sea_snake": Snake}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rleu", "; did you mean 'relu'?"),
        ("qqqq", "; expected one of elu, relu, tanh"),
        (3, "; expected one of elu"),
    ],
)
def test_nearest_names_the_closest_or_all(name, expected):
    assert nearest(name, ["tanh", "relu", "elu"]).startswith(expected)


@pytest.mark.parametrize("name", ["sea_snake", "Sea-Snake", " SEA SNAKE "])
def test_a_name_is_found_whatever_its_case_and_hyphens(name):
    assert look_up("animal", name, TABLE) is Snake


def test_an_unknown_name_is_one_line_with_the_nearest():
    with pytest.raises(ValueError, match=r"^unknown animal 'sea_snack'; did you mean 'sea_snake'\?$"):
        look_up("animal", "sea_snack", TABLE)


def test_settings_are_checked_against_the_signature():
    assert call_with("animal", Animal, {"legs": 2}).legs == 2
    with pytest.raises(ValueError, match=r"^unknown setting 'leg' of animal; did you mean 'legs'\?$"):
        call_with("animal", Animal, {"leg": 2})
    with pytest.raises(ValueError, match=r"^animal 'sea_snake' needs the setting 'length'; give it a value$"):
        call_with("animal 'sea_snake'", Snake, {})


def test_a_factory_that_takes_anything_gets_anything():
    assert call_with("thing", lambda **given: given, {"a": 1}) == {"a": 1}


def test_build_takes_an_object_a_class_a_name_or_a_table():
    animal = Animal()
    assert build("animal", animal, Animal, TABLE) is animal
    assert isinstance(build("animal", Animal, Animal, TABLE), Animal)
    assert isinstance(build("animal", "Animal", Animal, TABLE), Animal)
    given = {"name": "sea-snake", "length": 2.5}
    snake = build("animal", given, Animal, TABLE)
    assert isinstance(snake, Snake)
    assert snake.length == 2.5
    assert given == {"name": "sea-snake", "length": 2.5}  # as it was


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("cat", ValueError, "unknown animal 'cat'"),
        (
            {"legs": 3},
            ValueError,
            "a animal given as a table needs a name; expected one of animal, sea_snake",
        ),
        ({"name": 3}, ValueError, "needs a name"),
        ({"name": "sea_snake"}, ValueError, "animal 'sea_snake' needs the setting 'length'"),
        (
            {"name": "animal", "lags": 1},
            ValueError,
            "unknown setting 'lags' of animal 'animal'; did you mean 'legs'",
        ),
        (3, TypeError, "animal is a int; expected a Animal, or one of the names animal, sea_snake"),
        (None, TypeError, "animal is a NoneType"),
        (int, TypeError, "animal is a type"),
    ],
)
def test_what_build_cannot_make_is_one_line(spec, error, message):
    with pytest.raises(error) as caught:
        build("animal", spec, Animal, TABLE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
