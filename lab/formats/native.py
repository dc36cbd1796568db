"""The lab's own layout, which holds every model: each weight under its own name and shape, and the config's sections as they are."""

from lab.formats.rules import Rest


class Format:
    """Reads and writes what the lab alone reads; sizes and parts are told in full by config.json."""

    classes = ("ScalingLab",)
    model = ""
    file = "model.safetensors"

    @staticmethod
    def config(theirs: dict) -> dict:
        """The sections of a config, and the sizes of the data."""
        return {k: theirs[k] for k in ("model", "base", "objective", "data")}

    @staticmethod
    def theirs(config: dict) -> dict:
        """The same sections, under the class's name."""
        return {"_class_name": Format.classes[0], **{k: config[k] for k in ("model", "base", "objective", "data")}}

    @staticmethod
    def rules(config: dict) -> tuple[Rest, ...]:
        """Every weight as it is."""
        return (Rest(),)
