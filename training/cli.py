"""The verbs of the batch side. Each loads only what it needs: a verb that was not asked for must not cost seconds, nor need its extra."""

# ruff: noqa: PLC0415 -- see above

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bandit.errors import InvalidSettingError, NotBetterError, NotPromotedError, StreamDiffersError
from bandit.rewards.feedback import FUTURE_TOLERANCE
from bandit.settings.load import DEFAULT_FILE, Settings, load_settings
from training.claim import running
from training.console import AsJson, AsOf, SettingsFile, now, progress_bar, run_step, show, stderr, stop_event, time_of, verb
from training.lock import leased


@verb(extra="training")
def init(folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path()) -> None:
    """Write a settings file and a Feast repository to start from. Nothing that exists is overwritten."""
    from training.deployment import create

    for file, written in create(folder).items():
        if written:
            typer.echo(file)
        else:
            stderr.print(f"{file} exists, left as it is")


@verb(extra="training")
def cluster(
    history: Annotated[Path, typer.Option(help="Parquet: user_id, item_id, action, occurred_at.")],
    embeddings: Annotated[Path, typer.Option(help="Parquet: item_id, embedding and, if known, topic.")],
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    as_of: AsOf = "",
    as_json: AsJson = False,
) -> None:
    """Cluster each user's engaged items: a new snapshot of `user_clusters`."""
    from training.clustering import cluster as step
    from training.stream.publish import publish

    settings = load_settings(settings_file)
    streaming = settings.stream.enabled
    with running(settings, "cluster") if streaming else leased(settings.data_path, "cluster"), progress_bar() as bar:
        task = bar.add_task("clustering users", total=None)
        result = step.cluster(
            settings,
            history=history,
            embeddings=embeddings,
            as_of=time_of(as_of),
            now=now(),
            effective_at=(lambda: now() + 2 * FUTURE_TOLERANCE) if streaming else None,
            publish=(lambda changes: publish(settings, changes)) if streaming else lambda changes: None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    show(result, as_json)


@verb(extra="training")
def fold(
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    as_of: AsOf = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the stream's sums with the fold instead; exit 1 when any differ.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Fold the whole history, not only what came since the last fold.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fold what the logs have gained into the decayed sums: a new snapshot of `cluster_rewards`."""
    from training.features import fold as step

    if verify:
        from training.stream.verify import verify as compare

        with stderr.status("comparing the stream with the batch fold"):
            compared = compare(load_settings(settings_file))
        show(compared.counts(), as_json)
        for user, problem in list(compared.differing.items())[:20]:
            stderr.print(f"user {user!r}: {problem}", highlight=False, markup=False, soft_wrap=True)
        if compared.differing:
            raise StreamDiffersError(len(compared.differing), compared.users)
        return

    def run(settings: Settings) -> object:
        return step.fold(settings, as_of=time_of(as_of), now=now(), full=full)

    run_step("fold", settings_file, as_json, run, writes_redis=False)


@verb(extra="training")
def materialize(
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    as_of: AsOf = "",
    everything: Annotated[bool, typer.Option("--all", help="Write every row, whatever is online.")] = False,
    as_json: AsJson = False,
) -> None:
    """Apply the Feast definitions and bring the online store to the newest rows on disk."""
    from training.features import materialize as step

    def run(settings: Settings) -> object:
        with progress_bar() as bar:
            task = bar.add_task("writing rows", total=None)
            return step.materialize(
                settings,
                until=time_of(as_of),
                everything=everything,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )

    run_step("materialize", settings_file, as_json, run)


@verb(extra="training")
def stream(
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    once: Annotated[bool, typer.Option("--once", help="End when nothing waits any more.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="First rebuild the online sums from the logs.")] = False,
    metrics_port: Annotated[int, typer.Option(help="Serve Prometheus metrics on this port of the loopback interface.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fold feedback and decisions as they happen, until SIGTERM; several processes share the work."""
    from training.stream import run as step

    settings = load_settings(settings_file)
    if not settings.stream.enabled:
        raise InvalidSettingError(
            str(settings_file), "stream.enabled", "is false: two writers of cluster_rewards would overwrite each other"
        )
    with stderr.status("starting") as status:
        stopped = stop_event()
        result = step.stream(settings, stopped.is_set, once=once, rebuild=rebuild, metrics_port=metrics_port, say=status.update)
    show(result, as_json)


@verb(extra="training")
def join(settings_file: SettingsFile = Path(DEFAULT_FILE), as_of: AsOf = "", as_json: AsJson = False) -> None:
    """Move decisions out of Redis, and join those whose window has closed with their feedback."""
    from training.logs import archive
    from training.models import join as step

    def run(settings: Settings) -> object:
        archive.move_logs(settings)
        return step.join(settings, as_of=time_of(as_of))

    run_step("join", settings_file, as_json, run)


@verb(extra="training")
def train(settings_file: SettingsFile = Path(DEFAULT_FILE), as_of: AsOf = "", as_json: AsJson = False) -> None:
    """Learn a candidate model from the joined rows."""
    from training.models import train as step

    run_step("train", settings_file, as_json, lambda settings: step.train(settings, as_of=time_of(as_of)), writes_redis=False)


@verb(extra="training")
def promote(
    version: Annotated[str, typer.Option(help="Version to promote; the newest when left out.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Do not ask the gate.")] = False,
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    as_json: AsJson = False,
) -> None:
    """Let a model serve, if the gate finds it better than the one that does."""
    from training.evaluation import gate as step

    run_step("promote", settings_file, as_json, lambda settings: step.promote_if_better(settings, version=version or None, force=force))


@verb(extra="training")
def evaluate(
    policy: Annotated[str, typer.Option(help="A policy that needs no model; on foreign logs: uniform, logged or column.")] = "",
    model: Annotated[str, typer.Option(help="A model version; the newest when no policy is named.")] = "",
    against: Annotated[str, typer.Option(help="Policy or version to compare with; the champion, else what was logged.")] = "",
    logs: Annotated[Path | None, typer.Option(help="A foreign log instead: VW dsjson or text, Open Bandit, or a table.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Of a foreign log: COLUMN=VALUE, rows to keep; may be repeated.")] = None,
    reward_range: Annotated[str, typer.Option(help="Of a foreign log: least and most reward of a row, such as 0,1.")] = "0,1",
    report: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    as_json: AsJson = False,
) -> None:
    """What a policy would have earned on logged traffic, and whether that can be told. Exit 0 for better, 3 otherwise."""
    from training.evaluation.result import as_dict

    if logs is not None:
        from training.evaluation import foreign_logs

        settings = load_settings(settings_file) if settings_file.exists() else Settings()
        with stderr.status("reading") as status:
            found = foreign_logs.evaluate_file(
                logs,
                policy or "uniform",
                where or [],
                reward_range,
                settings.gate.gate(),
                tolerate=settings.intake.tolerate,
                say=status.update,
            )
    else:
        from training.evaluation import gate

        settings = load_settings(settings_file)
        with stderr.status("evaluating"):
            found = gate.evaluate(settings, policy=policy, version=model, against=against)
    if report is not None:
        from training.evaluation import report as written
        from training.logs.writing import write_whole

        write_whole(report, written.page(found, settings if logs is None else None).encode())
    content = as_dict(found)
    show(content if as_json else {name: value for name, value in content.items() if name != "weights"}, as_json)
    if found.verdict != "better":
        raise NotBetterError(found.target, found.baseline, found.verdict, found.reasons)


@verb(extra="training")
def experiment(settings_file: SettingsFile = Path(DEFAULT_FILE), as_json: AsJson = False) -> None:
    """Reward per impression and per request of each arm, with intervals that hold at every look, and a sample-ratio check."""
    from training.evaluation import experiment as step

    show(step.report(load_settings(settings_file)), as_json)


@verb(extra="training")
def explain(
    decision_id: Annotated[str, typer.Argument(help="As in the decision log.")],
    settings_file: SettingsFile = Path(DEFAULT_FILE),
    as_json: AsJson = False,
) -> None:
    """Why a decision drew its queries, and whether recomputing it from the log gives the same bytes."""
    from training.evaluation import explain as step

    found = step.explain(load_settings(settings_file), decision_id)
    if as_json:
        show(found, as_json)
    else:
        typer.echo(step.as_text(found))


@verb(extra="training")
def rollback(settings_file: SettingsFile = Path(DEFAULT_FILE), as_json: AsJson = False) -> None:
    """Let the model before this one serve again."""
    from training.models import promote as step

    run_step("rollback", settings_file, as_json, step.rollback)


@verb(extra="training")
def retrain(settings_file: SettingsFile = Path(DEFAULT_FILE), as_of: AsOf = "", as_json: AsJson = False) -> None:
    """Every step since the last run: move, fold, materialize, join, train, promote. For a scheduler; exit 3 when nothing was promoted."""
    from training import retrain as step

    settings = load_settings(settings_file)
    with stderr.status("starting") as status:
        result = step.retrain(settings, as_of=time_of(as_of), now=now(), say=status.update)
    show(result, as_json)
    if result.promoted is None:
        raise NotPromotedError(result.not_promoted)


@verb(extra="training")
def learn(settings_file: SettingsFile = Path(DEFAULT_FILE), as_json: AsJson = False) -> None:
    """Small updates of the served model every `training.every_seconds`, until SIGTERM."""
    from training import update as step

    settings = load_settings(settings_file)
    if not settings.training.every_seconds:
        raise InvalidSettingError(str(settings_file), "training.every_seconds", "is 0: the served model changes by `retrain` only")
    step.keep_learning(settings, clock=now, wait=stop_event().wait, show=lambda updated: show(updated, as_json))
