"""The base class of a recipe's sections: frozen, strict about types, and closed to unknown fields."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a recipe. Every field's docstring says its unit, its effect and its source."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
