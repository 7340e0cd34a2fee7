"""`stepstack push`: a finished run's model, with its card, to the Hugging Face hub."""

from __future__ import annotations

import argparse

from stepstack.cli.common import add_config

HELP = "upload a finished run's model, with its card, to the Hugging Face hub"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="on the hub; made if there is none")
    parser.add_argument("--revision", metavar="BRANCH", help="branch of it; made if there is none; default: main")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--adapter", action="store_true", help="upload the adapters alone, of a run with lora")
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes; upload nothing")


def run(args: argparse.Namespace) -> int:
    from recipes.protocol import load_config
    from stepstack.harness.training import upload

    cfg = load_config(args.name, args.overrides)
    upload.check_repo(args.repo)
    folder = upload.finished_model(cfg.folder, "model-adapter" if args.adapter else "model")
    for name, size in upload.files(folder):
        print(f"{size:>15,}  {name}")
    if not args.dry_run:
        print(upload.push(folder, upload.Destination(repo=args.repo, revision=args.revision, private=args.private)))
    return 0
