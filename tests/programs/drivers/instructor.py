# ruff: noqa: F821 (the settings that take the next line's place define names)
# $settings
from pydantic import BaseModel, Field


class Animal(BaseModel):
    """An animal."""

    kind: str = Field(description="what it is called")
    legs: int = Field(description="how many it has")


for name, client in {"chat": chat, "responses": responses, "messages": messages}.items():
    animal = client.create(
        model=model,
        max_tokens=200,
        max_retries=0,
        response_model=Animal,
        messages=[{"role": "user", "content": "A spider has 8 legs. Write it down."}],
    )
    print(f"{name}: {animal.model_dump_json()}")
