"""The command line: one small file per verb, imported without torch, transformers or pydantic."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mtlcore.cli import (
    adapt,
    audit,
    baseline,
    check,
    compare,
    cv,
    demo,
    env,
    evaluate,
    explain,
    export,
    generate,
    group,
    init,
    ops,
    predict,
    preview,
    report,
    review,
    schema,
    tour,
    train,
)
from mtlcore.cli.console import print_error
from mtlcore.errors import MtlcoreError, UserError
from mtlcore.terminal import outliving_readers

VERBS = {  # in the order of --help; `plugins` has verbs of its own and is mounted when used
    "demo": demo.demo,
    "init": init.init,
    "check": check.check,
    "preview": preview.preview,
    "train": train.train,
    "adapt": adapt.adapt,
    "evaluate": evaluate.evaluate,
    "baseline": baseline.baseline,
    "cv": cv.cv,
    "compare": compare.compare,
    "audit": audit.audit,
    "explain": explain.explain,
    "review": review.review,
    "report": report.report,
    "group": group.group,
    "predict": predict.predict,
    "generate": generate.generate,
    "export": export.export,
    "plugins": None,
    "schema": schema.schema,
    "ops": ops.ops,
    "env": env.env,
    "tour": tour.tour,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and exit: 0, 1 for failures, 2 for what the user can mend."""
    args, debug = take_global_flags(list(sys.argv[1:] if argv is None else argv))
    args = train.complete_bare_resume(args)
    keep_progress_bars_out_of_logs()
    try:
        build_app(args)(args, prog_name="mtlcore")
    except MtlcoreError as error:
        if debug:
            raise
        with outliving_readers():
            print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug or not error.filename:
            raise
        with outliving_readers():
            print_error(UserError(error.strerror or str(error), where=str(error.filename)))
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def take_global_flags(args: list[str]) -> tuple[list[str], bool]:
    """Take --debug, --no-plugins and --disable-plugin out, wherever they stand before `--`.

    The plugin flags become environment variables, so that worker processes see them too.
    """
    end = args.index("--") if "--" in args else len(args)
    flags, rest = args[:end], args[end:]
    kept: list[str] = []
    disabled: list[str] = []
    debug = False
    while flags:
        flag = flags.pop(0)
        if flag == "--debug":
            debug = True
        elif flag == "--no-plugins":
            os.environ["MTLCORE_NO_PLUGINS"] = "1"
        elif flag == "--disable-plugin" and flags:
            disabled.append(flags.pop(0))
        elif flag.startswith("--disable-plugin="):
            disabled.append(flag.partition("=")[2])
        else:
            kept.append(flag)
    if disabled:
        before = os.environ.get("MTLCORE_DISABLE_PLUGINS", "")
        os.environ["MTLCORE_DISABLE_PLUGINS"] = ",".join(filter(None, [before, *disabled]))
    return kept + rest, debug


def keep_progress_bars_out_of_logs() -> None:
    """Where stderr is no terminal, transformers and datasets draw no bars unless told to.

    They read these variables when they are imported.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def build_app(args: Sequence[str]) -> typer.Typer:
    """The application; `plugins` and the verbs of plugins are added only when they are needed."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    verb = next((arg for arg in args if not arg.startswith("-")), None)
    for name, function in VERBS.items():
        if function is not None:
            app.command(name)(function)
        elif verb == name:
            from mtlcore.cli.plugins import app as plugins_app

            app.add_typer(plugins_app, name=name)
        else:
            app.command(name, help="List, describe and check plugins.")(lambda: None)
    if verb not in VERBS and "--version" not in args:
        from mtlcore.cli.third_party import add_verbs

        add_verbs(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from mtlcore import __version__

        typer.echo(f"mtlcore {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="And exit.")
    ] = False,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Load no third-party code.")
    ] = False,
    disable_plugin: Annotated[
        list[str] | None,
        typer.Option("--disable-plugin", metavar="NAME", help="Leave this plugin out; repeatable."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Fine-tune one language model on many tasks at once."""
    # Listed for --help: `take_global_flags` has read all but --version, at any position.
