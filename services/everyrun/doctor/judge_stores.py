"""Judge Kafka and Postgres: if they answer, accept writes, have the right topics and tables, and fit together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everyrun.doctor.facts import KafkaFacts, PostgresFacts
from everyrun.doctor.findings import Finding, failed, not_checked, ok, warning

KAFKA, TOPICS, POSTGRES, MIGRATIONS, SAME_LOG = "Kafka", "topics", "Postgres", "migrations", "tables and log"
QUEUE, LIMITS = "queue", "limits of Postgres"
OLDEST_POSTGRES = 15


def judge_kafka(facts: KafkaFacts) -> list[Finding]:
    """Judge whether Kafka answers and accepts a record, and has the topics as declared (others may lose data)."""
    if facts.problem is not None:
        remedy = "Check EVERYRUN_KAFKA_BOOTSTRAP (host:port of a broker), that the broker runs, and the firewall."
        return [failed(KAFKA, f"does not answer: {facts.problem}", remedy), not_checked(TOPICS, KAFKA)]
    if facts.write_problem is not None:
        remedy = "Check the brokers' disks and logs, min.insync.replicas, and the permissions of this user."
        written = failed(KAFKA, f"accepts no record: {facts.write_problem}", remedy)
    else:
        written = ok(KAFKA, f"cluster {facts.cluster_id} accepts records")
    if facts.differences:
        return [written, *(failed(TOPICS, what, remedy) for what, remedy in facts.differences)]
    return [written, ok(TOPICS, "partitions, retention and settings are as declared")]


def judge_postgres(facts: PostgresFacts, files: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Judge whether Postgres answers and accepts writes, and whether every migration is applied.

    ``files`` lists, for each schema, the migrations of this version of Everyrun.
    """
    if facts.problem is not None:
        remedy = "Check EVERYRUN_POSTGRES_DSN (host, user, password, database), that the server runs, and the firewall."
        return [failed(POSTGRES, f"does not answer: {facts.problem}", remedy), not_checked(MIGRATIONS, POSTGRES)]
    if facts.shared:
        remedy = "Set pool_mode = session for this database in PgBouncer, or set the dsn to Postgres itself."
        found = "is behind a connection pooler in transaction or statement mode, so no service starts"
        return [failed(POSTGRES, found, remedy), not_checked(MIGRATIONS, POSTGRES)]
    limits = [_limit(*limit) for limit in facts.limits]
    return [_written(facts), *limits, *_migrated(facts, files), *map(_lost, facts.lost)]


#: For each value of ``source`` in pg_settings: for whom the setting is set, and how to remove it.
_SET_FOR = {
    "user": ("the role", "alter role ROLE reset {name}"),
    "database": ("the database", "alter database DATABASE reset {name}"),
    "database user": ("the role in this database", "alter role ROLE in database DATABASE reset {name}"),
    "configuration file": ("the whole server", "{name} in postgresql.conf, or alter system reset {name}"),
    "global": ("every role", "alter role all reset {name}"),
}


def _limit(name: str, value: str, source: str) -> Finding:
    where, how = _SET_FOR.get(source, (f"this connection ({source})", "PGOPTIONS, or the options of the dsn"))
    remedy = (
        "Everyrun's own sessions set it to 0 and limit each call themselves. It affects other sessions of the same "
        f"user, such as your SQL on the results. To remove it: {how.format(name=name)}."
    )
    return warning(LIMITS, f"{name} is {value} for {where}", remedy)


def _lost(found: tuple[str, str, int]) -> Finding:
    submission_id, key, inputs = found
    remedy = f"To send them, repeat the upload: everyrun submit MANIFEST --idempotency-key {key}"
    return warning(QUEUE, f"{inputs} inputs of {submission_id} were lost when a backup was restored", remedy)


def _written(facts: PostgresFacts) -> Finding:
    major = facts.version // 10_000
    if facts.read_only is not None:
        remedy = (
            "Set EVERYRUN_POSTGRES_DSN to the primary. If default_transaction_read_only was set, remove it: "
            "alter system reset default_transaction_read_only; select pg_reload_conf()."
        )
        return failed(POSTGRES, f"is read-only: {facts.read_only}", remedy)
    if facts.write_problem is not None:
        remedy = "Check the server's disk, and that the user owns the schemas everyrun and everyrun_queue."
        return failed(POSTGRES, f"cannot be written: {facts.write_problem}", remedy)
    if major < OLDEST_POSTGRES:
        return warning(POSTGRES, f"is version {major}", "Everyrun is tested with PostgreSQL 15 to 18.")
    return ok(POSTGRES, f"version {major} can be written")


def _migrated(facts: PostgresFacts, files: Mapping[str, Sequence[str]]) -> list[Finding]:
    findings = []
    for schema, wanted in files.items():
        applied = facts.migrations.get(schema)
        if applied is None:
            findings.append(failed(MIGRATIONS, f"the schema {schema} is missing", "Create it: everyrun migrate."))
            continue
        missing, unknown = sorted(set(wanted) - set(applied)), sorted(set(applied) - set(wanted))
        if missing:
            found = f"the schema {schema} lacks {', '.join(missing)}"
            findings.append(failed(MIGRATIONS, found, "Apply them: everyrun migrate."))
        elif unknown:
            found = f"the schema {schema} has {', '.join(unknown)}, which this version does not know"
            findings.append(warning(MIGRATIONS, found, "A newer version of Everyrun was used: use that one."))
    return findings or [ok(MIGRATIONS, f"{' and '.join(files)} are up to date")]


def judge_same_log(cluster_id: str, known: Sequence[str]) -> list[Finding]:
    """Judge whether the result tables were made from this Kafka cluster.

    ``known`` lists the ids of the clusters from which the tables were made. If ``known`` or ``cluster_id`` is empty,
    return no finding.
    """
    if not cluster_id or not known:
        return []
    if list(known) != [cluster_id]:
        remedy = "Set EVERYRUN_KAFKA_BOOTSTRAP to that cluster, or drop the schema everyrun to rebuild it."
        return [failed(SAME_LOG, f"the tables were made from {', '.join(known)}, this Kafka is {cluster_id}", remedy)]
    return [ok(SAME_LOG, "the tables were made from this log")]
