"""`fokker models`."""

from typing import Annotated

import typer

from service.client_commands.console import ApiKey, AsJson, Url, print_json, print_table, session


def models(
    name: Annotated[str | None, typer.Argument(help="One model, whose card is printed.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the models, or print the card of one."""
    with session(url, api_key) as client:
        if name is not None:
            print_json(client.model(name))
            return
        cards = client.models()
        if as_json:
            print_json({"models": cards})
            return
        columns = ("name", "live", "channels x height x width", "levels", "classes", "digest")
        print_table(
            columns,
            [
                (
                    card["name"],
                    "yes" if card["live"] else "no",
                    "x".join(map(str, card["shape"])),
                    card["levels"],
                    ", ".join(card.get("class_names") or ()),
                    card["digest"],
                )
                for card in cards
            ],
        )
