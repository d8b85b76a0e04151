"""Names of classes that were given none. Without torch, which the report starts without."""


def numbered_classes(number: int) -> list[str]:
    return [f"class {index}" for index in range(number)]
