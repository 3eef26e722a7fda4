"""What presets stand for, as text. Knows no model."""

from loramux_train import adapter_settings, target_settings


def text() -> str:
    """Ranks, kinds of layers and blocks by name."""
    ranks = {name: f"rank {rank}, alpha {rank}" for name, rank in adapter_settings.PRESETS.items()}
    sections = {
        "adapter.rank": ranks,
        "targets.modules": target_settings.ABOUT,
        "targets.blocks": target_settings.BLOCKS,
    }
    lines: list[str] = []
    for name, meanings in sections.items():
        lines += [name, *(f"  {word:<10}{meaning}" for word, meaning in meanings.items()), ""]
    return "\n".join(lines[:-1])
