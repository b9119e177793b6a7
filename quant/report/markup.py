"""HTML and SVG from Python values, escaped: el("td", name, class_="number") -> <td class="number">name</td>.

A child that is Markup stands as it is, everything else is text. What a model said, a file's name, a message: nothing of
it can become a tag.
"""

from html import escape

VOID = {"img", "meta", "br"}


class Markup(str):
    """Text that is HTML already."""


def el(tag: str, *children, **attributes) -> Markup:
    """An element. Attributes: class_ is class, aria_label aria-label; one that is None or False is left out, True
    stands without a value.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        words.append(name if value is True else f'{name}="{escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    if tag in VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{tag}>")


def join(children) -> Markup:
    """Children one after the other; None is nothing, lists are laid flat."""
    return Markup("".join(_text(child) for child in children))


def _text(child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return escape(str(child))
