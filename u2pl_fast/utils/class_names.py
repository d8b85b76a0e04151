"""Name classes without names; does not import torch, so that the report starts fast."""


def numbered_classes(number: int) -> list[str]:
    return [f"class {index}" for index in range(number)]
