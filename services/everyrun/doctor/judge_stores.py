"""What Kafka and Postgres showed of themselves, judged. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everyrun.doctor.facts import KafkaFacts, PostgresFacts
from everyrun.doctor.findings import Finding, failed, not_checked, ok, warning

KAFKA, TOPICS, POSTGRES, MIGRATIONS, SAME_LOG = "Kafka", "topics", "Postgres", "migrations", "tables and log"
QUEUE, LIMITS = "queue", "limits of Postgres"
OLDEST_POSTGRES = 15


def judge_kafka(facts: KafkaFacts) -> list[Finding]:
    """Whether Kafka answers and takes a record, and whether its topics lose nothing."""
    if facts.problem is not None:
        remedy = "Check EVERYRUN_KAFKA_BOOTSTRAP (host:port of a broker), that it runs, and the firewall."
        return [failed(KAFKA, f"does not answer: {facts.problem}", remedy), not_checked(TOPICS, KAFKA)]
    if facts.write_problem is not None:
        remedy = "Check the brokers' disks and logs, min.insync.replicas, and the rights of this user."
        written = failed(KAFKA, f"takes no record: {facts.write_problem}", remedy)
    else:
        written = ok(KAFKA, f"cluster {facts.cluster_id} takes a record")
    if facts.differences:
        return [written, *(failed(TOPICS, what, remedy) for what, remedy in facts.differences)]
    return [written, ok(TOPICS, "partitions, retention and settings are as declared")]


def judge_postgres(facts: PostgresFacts, files: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Whether Postgres answers, can be written, and has every migration; ``files`` are ours, by schema."""
    if facts.problem is not None:
        remedy = "Check EVERYRUN_POSTGRES_DSN (host, user, password, database), that it runs, and the firewall."
        return [failed(POSTGRES, f"does not answer: {facts.problem}", remedy), not_checked(MIGRATIONS, POSTGRES)]
    if facts.shared:
        remedy = "Set pool_mode = session for this database in PgBouncer, or name Postgres itself in the dsn."
        found = "is behind a connection pooler in transaction or statement mode: no service starts there"
        return [failed(POSTGRES, found, remedy), not_checked(MIGRATIONS, POSTGRES)]
    limits = [_limit(*limit) for limit in facts.limits]
    return [_written(facts), *limits, *_migrated(facts, files), *map(_lost, facts.lost)]


#: Where a setting comes from, as pg_settings names it: in words, and how to take it back.
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
        "Everyrun's own sessions set it to 0, and give each call a limit of its own. It ends other sessions of the "
        f"same user, such as SQL on the results. To take it back: {how.format(name=name)}."
    )
    return warning(LIMITS, f"{name} is {value} for {where}", remedy)


def _lost(found: tuple[str, str, int]) -> Finding:
    submission_id, key, inputs = found
    remedy = f"To send them, repeat the upload: everyrun submit MANIFEST --idempotency-key {key}"
    return warning(QUEUE, f"{inputs} inputs of {submission_id} were lost with the queue's backup", remedy)


def _written(facts: PostgresFacts) -> Finding:
    major = facts.version // 10_000
    if facts.read_only is not None:
        remedy = (
            "Point EVERYRUN_POSTGRES_DSN at the primary; where default_transaction_read_only was set, take it back: "
            "alter system reset default_transaction_read_only; select pg_reload_conf()."
        )
        return failed(POSTGRES, f"can only be read: {facts.read_only}", remedy)
    if facts.write_problem is not None:
        remedy = "Check the disk of the server, and that the user owns the schemas everyrun and everyrun_queue."
        return failed(POSTGRES, f"cannot be written: {facts.write_problem}", remedy)
    if major < OLDEST_POSTGRES:
        return warning(POSTGRES, f"is version {major}", "Everyrun is tested with PostgreSQL 15 to 18.")
    return ok(POSTGRES, f"version {major} can be written")


def _migrated(facts: PostgresFacts, files: Mapping[str, Sequence[str]]) -> list[Finding]:
    findings = []
    for schema, wanted in files.items():
        applied = facts.migrations.get(schema)
        if applied is None:
            findings.append(failed(MIGRATIONS, f"the schema {schema} is not there", "Make it: everyrun migrate."))
            continue
        missing, unknown = sorted(set(wanted) - set(applied)), sorted(set(applied) - set(wanted))
        if missing:
            found = f"the schema {schema} lacks {', '.join(missing)}"
            findings.append(failed(MIGRATIONS, found, "Bring it up to date: everyrun migrate."))
        elif unknown:
            found = f"the schema {schema} has {', '.join(unknown)}, which this Everyrun does not know"
            findings.append(warning(MIGRATIONS, found, "A newer Everyrun was here: use that one."))
    return findings or [ok(MIGRATIONS, f"{' and '.join(files)} are up to date")]


def judge_same_log(cluster_id: str, known: Sequence[str]) -> list[Finding]:
    """Whether the tables were made from this Kafka; nothing to say where either is not known."""
    if not cluster_id or not known:
        return []
    if list(known) != [cluster_id]:
        remedy = "Point EVERYRUN_KAFKA_BOOTSTRAP at that cluster, or drop the schema everyrun to build it anew."
        return [failed(SAME_LOG, f"the tables were made from {', '.join(known)}, this Kafka is {cluster_id}", remedy)]
    return [ok(SAME_LOG, "belong together")]
