"""The base of all sections of a profile: frozen, strictly typed, without unknown keys."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Scale = Annotated[float, Field(ge=0.1, le=10)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # the range that torch and numpy both accept


def _checked_text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty; leave it out instead")
    return text


# An empty path would be the project's folder
PathText = Annotated[str, AfterValidator(_checked_text)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
