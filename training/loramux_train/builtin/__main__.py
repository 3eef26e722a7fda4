"""`python -m loramux_train.builtin STAGE`: the recipe's stages as commands.

Takes arguments; calls one stage. Knows only how to read arguments: what each stage does is in the module it names.
"""

import argparse
from pathlib import Path

import torch


def _icons(arguments: argparse.Namespace) -> None:
    from loramux_train.builtin.icons import fetch_packages, render_all

    fetch_packages(arguments.work / "npm")
    render_all(arguments.work / "npm", arguments.work / "icons")


def _vae(arguments: argparse.Namespace) -> None:
    from loramux_train.builtin.vae import VaeRecipe, peak_signal_to_noise, train_vae

    recipe = VaeRecipe(updates=arguments.updates, seed=arguments.seed)
    vae = train_vae(arguments.work / "icons", arguments.work, recipe, arguments.minutes, arguments.until)
    print(peak_signal_to_noise(vae, arguments.work / "icons"))


def _joint(arguments: argparse.Namespace) -> None:
    from loramux_train.builtin.joint import JointRecipe, train_joint

    recipe = JointRecipe(updates=arguments.updates, seed=arguments.seed)
    train_joint(arguments.work, recipe, arguments.minutes, arguments.until)


def _export(arguments: argparse.Namespace) -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    from loramux_train.builtin.export import export_base
    from loramux_train.builtin.joint import JointRecipe, JointTraining, base_table
    from loramux_train.builtin.references import write_references

    recipe, work = JointRecipe(seed=arguments.seed), arguments.work
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    stage = JointTraining(base_table(work, recipe), tokenizer, recipe)
    stage.resume(work / "joint.pt")
    parts = stage.parts(AutoencoderKL.from_pretrained(work / "vae").eval())
    size = export_base(parts, arguments.out / "base")
    write_references(work / "icons", arguments.out / "card" / "real")
    print(f"exported update {stage.run.step} to {arguments.out / 'base'}: {size} bytes")


def _pictures(arguments: argparse.Namespace) -> None:
    from loramux_train.builtin.picture_folders import write_folders

    write_folders(arguments.work / "icons", arguments.work / "pictures")


def _judge(arguments: argparse.Namespace) -> None:
    from loramux_train.builtin.acceptance import judge

    judge(arguments.out, arguments.names)


def _card(arguments: argparse.Namespace) -> None:
    from loramux_train.builtin.card import write_card

    write_card(arguments.out)


def _examples(arguments: argparse.Namespace) -> None:
    from loramux_train.builtin.few import write_examples

    write_examples(arguments.out, arguments.work / "runs", Path("docs/training-examples"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loramux_train.builtin", description="make the built-in base and its adapters"
    )
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="downloads, caches, checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("icons", help="download and render the icon packages").set_defaults(call=_icons)
    vae = stages.add_parser("vae", help="train the autoencoder")
    vae.set_defaults(call=_vae)
    joint = stages.add_parser("joint", help="train the UNet and the text encoder together")
    joint.set_defaults(call=_joint)
    for stage, updates in ((vae, 14_000), (joint, 15_000)):
        stage.add_argument("--updates", type=int, default=updates, help="length of the run (default %(default)s)")
        stage.add_argument("--minutes", type=float, help="stop early, keeping a checkpoint to resume from")
        stage.add_argument("--until", type=int, help="stop at this update of the schedule, keeping a checkpoint")
        stage.add_argument("--seed", type=int, default=0)
    export = stages.add_parser("export", help="write the base and the reference sheets")
    export.add_argument("--seed", type=int, default=0)
    export.set_defaults(call=_export)
    pictures = stages.add_parser("pictures", help="write what the adapters learn from: folders with captions")
    pictures.set_defaults(call=_pictures)
    judging = stages.add_parser("judge", help="measure the base and the adapters, write results.json")
    judging.set_defaults(call=_judge)
    judging.add_argument("names", nargs="*", help="which adapters, or base; all if none is named")
    card = stages.add_parser("card", help="draw the model card's contact sheets")
    card.set_defaults(call=_card)
    examples = stages.add_parser("examples", help="measure and draw what few pictures taught")
    examples.set_defaults(call=_examples)
    for stage in (export, judging, card, examples):
        stage.add_argument("--out", type=Path, required=True, help="the built-in folder")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the stage the arguments name."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.call(arguments)


if __name__ == "__main__":
    main()
