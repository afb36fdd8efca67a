"""Bad arguments, examples, actions and states of a stream are refused in one line."""

from typing import Any

import numpy as np
import pytest

from everloop.envs import (
    ByColumn,
    Examples,
    IBlurry,
    ImageStreamVectorEnv,
    Mixture,
    Permuted,
    Rotated,
    SplitClasses,
    TextStreamVectorEnv,
)

LABELS = np.arange(12) % 4
NAMES = ("a", "b", "c", "d")
IMAGES = np.zeros((12, 8, 8, 1), np.uint8)


def examples(
    inputs: Any = IMAGES, labels: Any = LABELS, classes: Any = NAMES, **more: Any
) -> Examples:
    return Examples(inputs, labels, classes, **more)


DATA = (examples(), examples())
TEXTS = examples(np.zeros((12, 5), np.int32))


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (
            {"task_split": SplitClasses(3)},
            r"^classes_per_task is 3; it must divide the number of classes, 4$",
        ),
        ({"task_split": SplitClasses(0)}, r"^classes_per_task is 0"),
        ({"task_split": SplitClasses(-2)}, r"^classes_per_task is -2"),
        (
            {"task_split": SplitClasses(groups=[["a"], ["e"]])},
            r"^unknown class 'e': choose a number from 0 to 3 or one of a, b, c, d",
        ),
        (
            {"task_split": SplitClasses(groups=[["a", "b"], []])},
            "^group 1 of groups is empty; give it at least one class$",
        ),
        (
            {"task_split": SplitClasses(groups=[])},
            "^groups is empty; give at least one group of classes$",
        ),
        (
            {"task_split": SplitClasses(groups=[["a"], ["b", 1]])},
            "^group 1 of groups holds class 'b' twice; name it once$",
        ),
        (
            {"task_split": {"kind": "classes", "size": 2}},
            (
                r"^the task split 'classes' does not take \{'kind': 'classes', 'size': 2\}: "
                r"SplitClasses\.__init__\(\) got an unexpected keyword argument 'size'$"
            ),
        ),
        (
            {"task_split": {"kind": "magic"}},
            (
                "^the task split's kind is 'magic'; choose one of classes, i-blurry, column, "
                "permuted, rotated$"
            ),
        ),
        ({"task_split": Permuted(0)}, "^num_tasks is 0; it must be 1 or more$"),
        ({"task_split": Rotated(angles=[])}, "^num_tasks is 0; it must be 1 or more$"),
        (
            {"task_split": ByColumn("domain")},
            (
                "^column is 'domain', but the data has no columns; load it with one, or choose "
                "another task split$"
            ),
        ),
        (
            {"task_split": IBlurry(1)},
            r"^num_tasks is 1; it must be 2 or more and divide the number of classes, 4$",
        ),
        (
            {"task_split": IBlurry(3)},
            "^num_tasks is 3; it must be 2 or more and divide the number of classes, 4$",
        ),
        (
            {"task_split": IBlurry(2, disjoint_ratio=1.5)},
            r"^disjoint_ratio is 1\.5; it must be from 0 to 1$",
        ),
        (
            {"task_split": IBlurry(2, blur_ratio=-0.5)},
            r"^blur_ratio is -0\.5; it must be from 0 to 1$",
        ),
        (
            {"mixture": {"blur_ratio": 0.1, "speed": 3}},
            (
                r"^the mixture does not take \{'blur_ratio': 0\.1, 'speed': 3\}: "
                r"Mixture\.__init__\(\) got an unexpected keyword argument 'speed'$"
            ),
        ),
        (
            {"mixture": Mixture(order=[0, 2])},
            r"^the mixture's order is \[0, 2\]; it must hold ids from 0 to 1$",
        ),
        (
            {"mixture": Mixture(ood_ratio=0.1, ood=["fog"])},
            (
                "^ood holds 'fog'; choose from noise, gaussian-noise, impulse-noise, blur, "
                "low-contrast, inverted$"
            ),
        ),
        (
            {"mixture": Mixture(ood=["other"])},
            (
                "^ood holds 'other'; choose from noise, gaussian-noise, impulse-noise, blur, "
                "low-contrast, inverted$"
            ),
        ),
        (
            {"mixture": Mixture(ood=[])},
            (
                "^ood is empty; choose at least one of noise, gaussian-noise, impulse-noise, "
                "blur, low-contrast, inverted$"
            ),
        ),
        (
            {"ood_data": np.zeros((3, 9, 9, 1), np.uint8)},
            r"^ood_data is uint8 of shape \(3, 9, 9, 1\); it must be uint8 \(N, 8, 8, 1\)$",
        ),
        (
            {"ood_data": np.zeros((3, 8, 8, 1))},
            r"^ood_data is float64 of shape \(3, 8, 8, 1\); it must be uint8 \(N, 8, 8, 1\)$",
        ),
        ({"split": "valid"}, "^split is 'valid'; choose train or test$"),
        ({"label_space": "local"}, "^label_space is 'local'; choose global or within_task$"),
        ({"episode_length": 0}, "^episode_length is 0; it must be 1 or more$"),
        ({"workers": -1}, "^workers is -1; it must be 0 or more$"),
        ({"num_envs": 0}, "^num_envs is 0; it must be 1 or more$"),
        (
            {"data": (examples(), examples(IMAGES[:, :7]))},
            r"^a test example has shape \(7, 8, 1\); it must be \(8, 8, 1\), as in training$",
        ),
        (
            {"data": (examples(), examples(classes=("a", "b", "c", "e")))},
            (
                r"^the test classes are \['a', 'b', 'c', 'e'\]; they must be those of training, "
                r"\['a', 'b', 'c', 'd'\]$"
            ),
        ),
        (
            {"data": (examples(), examples(labels=LABELS % 2)), "split": "test"},
            r"^task 1 \(c-d\) has no example in the test split",
        ),
        (
            {"data": (TEXTS, TEXTS)},
            r"^train images are int32 of shape \(12, 5\); they must be uint8 \(N, H, W, C\)$",
        ),
    ],
)
def test_a_bad_argument_of_an_image_stream_is_refused(
    parameters: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        ImageStreamVectorEnv(**({"data": DATA} | parameters))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (
            {"data": DATA},
            (
                r"^train texts are uint8 of shape \(12, 8, 8, 1\); they must be int32 token ids "
                r"\(N, L\)$"
            ),
        ),
        (
            {"data": (TEXTS, TEXTS), "task_split": Permuted(2)},
            (
                r"^inputs have shape \(12, 5\); permuted and rotated pixels need images \(N, H, W, "
                r"C\)$"
            ),
        ),
        (
            {"data": (examples(TEXTS.inputs, np.zeros((12, 5), np.int64)),) * 2},
            "^the labels are tags, one per token; a split by classes needs one label per example$",
        ),
        (
            {"data": (TEXTS, TEXTS), "mixture": Mixture(ood=["blur"])},
            r"^ood holds 'blur'; choose from noise, shuffled, dropped$",
        ),
    ],
)
def test_a_bad_argument_of_a_text_stream_is_refused(parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        TextStreamVectorEnv(**parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"blur_ratio": 1.2}, r"^blur_ratio is 1\.2; it must be from 0 to 1$"),
        ({"other_task_ratio": -0.1}, r"^other_task_ratio is -0\.1; it must be from 0 to 1$"),
        ({"ood_ratio": float("nan")}, "^ood_ratio is nan; it must be from 0 to 1$"),
        ({"gradual": 2.0}, r"^gradual is 2\.0; it must be from 0 to 1$"),
        ({"passes": 0}, "^passes is 0; it must be 1 or more$"),
        (
            {"blur_ratio": 0.5, "other_task_ratio": 0.25, "ood_ratio": 0.25},
            r"^blur_ratio \+ other_task_ratio \+ ood_ratio is 1; it must be less than 1$",
        ),
    ],
)
def test_an_impossible_mixture_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Mixture(**values)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"inputs": IMAGES[:0], "labels": LABELS[:0]},
            r"^there are 0 examples; give at least one$",
        ),
        (
            {"labels": LABELS[:11]},
            r"^12 examples have labels of shape \(11,\); it must be \(12,\), or \(N, L\) for tags$",
        ),
        ({"labels": LABELS - 1}, "^a label is -1; it must be from 0 to 3$"),
        ({"labels": LABELS + 1}, "^a label is 4; it must be from 0 to 3$"),
        (
            {"columns": {"domain": np.array(["x"])}},
            r"^column 'domain' has shape \(1,\); it must be \(12,\), one string per example$",
        ),
    ],
)
def test_examples_that_do_not_fit_together_are_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        examples(**values)


@pytest.mark.parametrize("shape", [(), (3,), (5,), (4, 2)])
def test_actions_of_the_wrong_shape_are_refused_and_skip_no_example(shape: tuple[int, ...]) -> None:
    env = ImageStreamVectorEnv(4, DATA)
    env.reset(seed=0)
    shown = env.state_dict()["own"]["pending"]
    with pytest.raises(
        ValueError, match=r"^actions have shape \(.*\); they must have shape \(4,\)$"
    ):
        env.step(np.zeros(shape, int))
    np.testing.assert_array_equal(env.state_dict()["own"]["pending"], shown)


def test_a_state_with_another_number_of_copies_is_refused() -> None:
    env = ImageStreamVectorEnv(4, DATA)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^the state has 4 copies; this world has 3"):
        ImageStreamVectorEnv(3, DATA).load_state_dict(env.state_dict())
