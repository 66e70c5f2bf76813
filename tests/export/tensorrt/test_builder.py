"""What is said of a build that gave no plan, from what TensorRT logged."""

from export.tensorrt.builder import why_no_plan

OUT_OF_MEMORY = [
    (False, "Requested amount of GPU memory (28579323904 bytes) could not be allocated."),
    (False, "UNSUPPORTED_STATE: Skipping tactic 28 due to insufficient memory on requested size of 2833252352"),
    (True, "Error Code 2: OutOfMemory (Requested size was 2833252352 bytes.)"),
    (True, "Could not find any implementation for node /conv_in/Conv."),
]


def test_memory_that_does_not_suffice_is_said_with_what_was_asked_and_what_is_free() -> None:
    text = why_no_plan("unet", OUT_OF_MEMORY, 8, 3 * 10**9)
    assert text.startswith("unet: the memory does not suffice")
    assert "asked for 28.6 GB, and 3.0 GB are free (Could not find any implementation for node /conv_in/Conv)" in text
    assert "`workspace` (now 8 GB)" in text
    assert "are free" not in why_no_plan("unet", OUT_OF_MEMORY, None, None)


def test_a_workspace_that_is_too_little_is_told_from_memory_that_is() -> None:
    said = [(True, "Tactic Selection: no tactics to implement the operation within workspace limit.")]
    assert "`workspace` of 0.001 GB is too little" in why_no_plan("unet", said, 0.001, 3 * 10**9)
    assert why_no_plan("unet", said, None, None).startswith("unet: TensorRT built no plan: Tactic Selection")


def test_a_warning_of_memory_is_no_reason() -> None:
    said = [*OUT_OF_MEMORY[:2], (True, "Assertion failed: no kernel")]
    assert why_no_plan("unet", said, None, None) == "unet: TensorRT built no plan: Assertion failed: no kernel."
    assert why_no_plan("unet", [], None, None) == "unet: TensorRT built no plan: TensorRT gives no reason."
